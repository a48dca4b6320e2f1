"""A linear layer that is not initialised twice."""

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` without its own initialisation: every initialisation stands in `transformer.py`.

    Skipping it also makes loading trained weights faster: nothing is drawn only to be overwritten.
    """

    def reset_parameters(self) -> None:
        pass
