"""A linear layer without initialization of its own."""

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` without its own initialization: `Transformer.init_weights` initializes everything.

    Loading trained weights is faster, too, since no random numbers are drawn to be overwritten.
    """

    def reset_parameters(self) -> None:
        pass
