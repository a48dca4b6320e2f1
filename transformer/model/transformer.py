"""The whole model: tokens to embeddings, through the layers, to a score for every token of the vocabulary.

Dimensions: B batch · T new tokens · S all tokens so far (past + T) · D d_model · V vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ContextLengthError
from transformer.model.attention import KeyValueCache, causal_mask
from transformer.model.config import ModelConfig
from transformer.model.layers import DecoderLayer, Dropout, make_norm
from transformer.model.linear import Linear
from transformer.model.positions import Learned, Rotary, Sinusoidal


class Transformer(nn.Module):
    """A decoder-only Transformer (Attention Is All You Need, figure 1, the right half without cross-attention).

    Args:
        config: the architecture.
        initialise: False leaves the weights as uninitialised memory, for a caller that loads trained ones.
    """

    def __init__(self, config: ModelConfig, initialise: bool = True) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model)
        self.position_embedding = {"sinusoidal": Sinusoidal, "learned": Learned}.get(config.positions, _no_module)(
            config
        )
        rotary = Rotary(config) if config.positions == "rotary" else None  # one table, shared by all layers
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config, rotary) for _ in range(config.n_layers))
        # After post-norm layers the stream is normalised already.
        self.final_norm = make_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.head = Linear(config.d_model, config.vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        if initialise:
            self.initialise()

    def forward(self, tokens_BT: Tensor, real_BT: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Scores (logits) for the token that follows each position, (B, T, V).

        Args:
            tokens_BT: token ids.
            real_BT: bool, False at padding, left or right; None: no padding.
            cache: the past; the new tokens are appended to it.

        Raises:
            ContextLengthError: if past and new tokens together are more than the context or the cache holds.
        """
        return self.head(self.hidden_states(tokens_BT, real_BT, cache))

    def hidden_states(
        self,
        tokens_BT: Tensor,
        real_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """The residual stream after the last layer, (B, T, D): what `head` makes logits of. Arguments as `forward`.

        Args:
            document_BT: numbers that tell apart the documents packed into a row: attention stays within a document,
                and positions begin anew with each; None: a row is one text. Without `real_BT` and `cache`.
        """
        new, past = tokens_BT.shape[1], cache.length if cache is not None else 0
        limit = cache.capacity if cache is not None else self.config.context_length
        if past + new > limit:
            raise ContextLengthError(f"{past} past and {new} new tokens do not fit in a context of {limit}.")
        if self.config.pad_token_id is not None and real_BT is None:
            real_BT = tokens_BT != self.config.pad_token_id
        real_BS = self._with_past(real_BT, cache, tokens_BT)

        positions = self._positions(past, new, real_BS, tokens_BT.device)
        mask = None  # the kernel's own causal mask serves, unless ...
        if real_BS is not None or (past and new > 1):
            mask = causal_mask(new, past, real_BS, tokens_BT.device)

        if document_BT is not None:
            causal = causal_mask(new, device=tokens_BT.device) if mask is None else mask
            mask = causal & (document_BT[:, None, :, None] == document_BT[:, None, None, :])  # (B, 1, T, T)
            positions = _positions_in_document(document_BT)

        x_BTD = self.token_embedding(tokens_BT)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * math.sqrt(self.config.d_model)  # 3.4
        if self.position_embedding is not None:
            x_BTD = self.position_embedding(x_BTD, positions)
        x_BTD = self.dropout(x_BTD)
        for i, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, positions, mask, cache.layers[i] if cache is not None else None)
        return self.final_norm(x_BTD)

    def _with_past(self, real_BT: Tensor | None, cache: KeyValueCache | None, tokens_BT: Tensor) -> Tensor | None:
        """(B, S): which tokens are real, the cached ones included; None if none was ever padded."""
        if cache is None or (real_BT is None and cache.real is None):
            return real_BT
        real_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if real_BT is None else real_BT
        past = real_BT.new_ones(real_BT.shape[0], cache.length) if cache.real is None else cache.real
        cache.real = torch.cat([past, real_BT], dim=1)
        return cache.real

    def _positions(self, past: int, new: int, real_BS: Tensor | None, device: torch.device) -> Tensor:
        """(T,), or with padding (B, T): the first real token is at position 0, however much padding is before it.

        The original project counts its padding (`pad_token_id`), so positions there are places in the window.
        """
        if real_BS is None or self.config.pad_token_id is not None:
            return torch.arange(past, past + new, device=device)
        return (real_BS.cumsum(dim=1) - 1).clamp(min=0)[:, past:]

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw every weight. All initialisation of the project stands here.

        Pre-norm models follow GPT-2: normal with std 0.02, and the two projections that write into the residual
        stream divided by sqrt(2 N), so that the stream's variance does not grow with depth (Radford et al., 2019,
        2.3). Post-norm models follow the paper's code: Xavier-uniform matrices, and embeddings of std D^-0.5, whose
        entries are of size one after the multiplication with sqrt(D) (3.4). Where they are not multiplied, as in the
        original project, they are drawn of that size, or they would drown in the sinusoids; unless they are the
        vocabulary projection too, which has to begin small. Biases are 0 and norms the identity.
        """
        pre = self.config.norm_placement == "pre"
        for module in self.modules():
            if isinstance(module, Linear):
                if pre:
                    module.weight.normal_(std=0.02)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, Learned):
                module.weight.normal_(std=0.02)
        if pre:
            for name, parameter in self.layers.named_parameters():
                if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                    parameter.div_(math.sqrt(2 * self.config.n_layers))
        # After the loop: with a tied head this is also the vocabulary projection.
        small = self.config.scale_embeddings or self.config.tie_embeddings
        self.token_embedding.weight.normal_(std=0.02 if pre else self.config.d_model**-0.5 if small else 1.0)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_embedding.weight.device

    def parameter_count(self) -> int:
        """Trained numbers in the model; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


class Embedding(nn.Embedding):
    """`nn.Embedding` without its own initialisation, for the reason of `Linear`."""

    def reset_parameters(self) -> None:
        pass


def _positions_in_document(document_BT: Tensor) -> Tensor:
    """(B, T): how far each token is from the beginning of its document in this row."""
    place = torch.arange(document_BT.shape[1], device=document_BT.device)
    begins = F.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0))  # the first token's 0 needs no mark
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def _no_module(config: ModelConfig) -> None:
    return None
