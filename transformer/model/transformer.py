"""The whole model: embeddings, decoder layers, and the projection to logits.

Dimensions: B batch · T new tokens · S tokens attended to · D d_model · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import ConfigError, ContextLengthError
from transformer.model.attention import Update, causal_mask
from transformer.model.config import ModelConfig
from transformer.model.kv_cache import KVCache
from transformer.model.layers import DecoderLayer, Dropout, make_norm
from transformer.model.linear import Linear
from transformer.model.positions import Learned, Sinusoidal, make_rotary


class Transformer(nn.Module):
    """A decoder-only Transformer (Attention Is All You Need, figure 1, the right half without cross-attention).

    Args:
        config: the architecture.
        initialize: False leaves the weights uninitialized, for a caller that loads trained ones.

    Raises:
        ConfigError: if the config is of another model class.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, config: ModelConfig, initialize: bool = True) -> None:
        super().__init__()
        if type(config) is not self.config_class:
            expected, given = self.config_class.__name__, type(config).__name__
            raise ConfigError(f"a {type(self).__name__} is built from a {expected}, not from a {given}.")
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.d_model)
        self.position_embedding = _added_positions(config)
        self.rotary = make_rotary(config) if config.positions == "rotary" else None  # shared by all layers
        self.local_rotary = None  # of layers with a sliding window, if they have a base of their own
        if config.rope_local_theta is not None:
            self.local_rotary = make_rotary(replace(config, rope_theta=config.rope_local_theta, rope_scaling=None))
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config, number) for number in range(config.n_layers))
        self.is_local, self.rotates = ([*map(of, range(config.n_layers))] for of in (config.is_local, config.rotates))
        self.window = config.sliding_window if config.has_window else None
        # The output of a post-norm layer is normalized already.
        self.final_norm = nn.Identity() if config.norm_placement == "post" else make_norm(config)
        self.head = Linear(config.d_model, config.vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        if initialize:
            self.init_weights()

    def forward(self, tokens_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """Logits for the token after each position, (B, T, V).

        Args:
            tokens_BT: token ids, (B, T).
            attention_mask_BT: bool (B, T), False at padding, left or right; None: no padding.

        Raises:
            ContextLengthError: if T exceeds the context length.
        """
        return self.head(self.hidden_states(tokens_BT, attention_mask_BT))

    def hidden_states(
        self, tokens_BT: Tensor, attention_mask_BT: Tensor | None = None, segment_ids_BT: Tensor | None = None
    ) -> Tensor:
        """The residual stream after the last norm, (B, T, D), which is the input of `head`. Arguments as in `forward`.

        Args:
            segment_ids_BT: (B, T), the number of the document of each token, for rows of several documents: attention
                stays within a document, and positions start from 0 in each. Not together with `attention_mask_BT`.
                None: each row is one document.
        """
        length = tokens_BT.shape[1]
        if length > self.config.context_length:
            raise ContextLengthError(f"{length} tokens do not fit in a context of {self.config.context_length}.")
        positions = self._positions(length, attention_mask_BT, tokens_BT.device)
        # Without padding and documents, attention uses the causal mask of its kernel.
        mask = None if attention_mask_BT is None else causal_mask(length, 0, attention_mask_BT, tokens_BT.device)
        if segment_ids_BT is not None:
            causal = causal_mask(length, device=tokens_BT.device) if mask is None else mask
            mask = causal & (segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :])  # (B, 1, T, T)
            positions = _positions_in_document(segment_ids_BT)
        local_mask = None
        if self.window is not None and mask is not None:
            local_mask = mask & causal_mask(length, device=tokens_BT.device, window=self.window)
        return self._forward(tokens_BT, positions, mask, local_mask=local_mask)

    # ---- generation with a cache ----

    def new_cache(self, batch_size: int, capacity: int, dtype: torch.dtype | None = None) -> KVCache:
        """A cache for `batch_size` sequences of up to `capacity` tokens. dtype: None: that of the weights.

        Raises:
            ContextLengthError: if the capacity exceeds the context length.
        """
        if capacity > self.config.context_length:
            raise ContextLengthError(
                f"a cache of {capacity} tokens was asked for, but the model's context holds "
                f"{self.config.context_length}."
            )
        dtype = dtype or self.token_embedding.weight.dtype

        def of_layer(layer: int) -> Tensor:
            length = min(capacity, self.config.window_of(layer) or capacity)
            shape = (batch_size, self.config.kv_heads, length, self.config.key_dim)
            return torch.zeros(shape, device=self.device, dtype=dtype)

        keys, values = ([*map(of_layer, range(self.config.n_layers))] for _ in range(2))
        return KVCache(keys, values, capacity)

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], cache: KVCache, sequence: int) -> None:
        """Compute the keys and values of a prompt in one pass. They replace those of the sequence in the cache.

        Raises:
            ContextLengthError: if the prompt exceeds the capacity of the cache.
        """
        check_capacity(len(tokens), cache)
        cache.lengths[sequence] = len(tokens)
        if tokens:
            updates = [partial(cache.update_sequence, i, sequence) for i in range(len(self.layers))]
            self._forward(torch.tensor([tokens], device=self.device), slice(len(tokens)), updates=updates)

    @torch.inference_mode()
    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        """Append one token (B,) to every sequence, and return the logits for the next one, (B, V).

        Raises:
            ContextLengthError: if a sequence has filled the cache.
        """
        lengths = cache.lengths
        longest = max(lengths)
        check_capacity(longest + 1, cache)
        if cache.has_equal_lengths:  # no mask is needed
            updates = [partial(cache.update_column, i, longest) for i in range(len(self.layers))]
            logits = self.head(self._forward(tokens_B[:, None], slice(longest, longest + 1), updates=updates)[:, 0])
        else:
            logits = self.decode_at(tokens_B, torch.tensor(lengths, device=self.device), cache, longest + 1)
        cache.lengths = [length + 1 for length in lengths]
        return logits

    def decode_at(self, tokens_B: Tensor, positions_B: Tensor, cache: KVCache, limit: int) -> Tensor:
        """`decode` for sequences whose lengths are given as a tensor (B,), all of them less than `limit`.

        With the capacity as `limit`, no Python number changes from token to token, so this can be captured as one CUDA
        graph. It does not change `cache.lengths`.
        """
        rows = torch.arange(len(tokens_B), device=self.device)
        columns = torch.arange(limit, device=self.device)
        mask = (columns <= positions_B[:, None])[:, None, None]  # (B, 1, 1, S)
        # The cache of a layer with a window holds the window only.
        local_mask = None if self.window is None else mask[..., : self.window]
        updates = [partial(cache.update_rows, i, rows, positions_B, limit) for i in range(len(self.layers))]
        return self.head(self._forward(tokens_B[:, None], positions_B[:, None], mask, updates, local_mask)[:, 0])

    # ---- the forward pass of all of them ----

    def _forward(
        self,
        tokens_BT: Tensor,
        positions: Tensor | slice,
        mask: Tensor | None = None,
        updates: Sequence[Update] | None = None,
        local_mask: Tensor | None = None,
    ) -> Tensor:
        """Embeddings, layers and final norm, (B, T, D).

        Args:
            positions: of the tokens, (T,) or (B, T), or a slice.
            mask: see `MultiHeadAttention`.
            updates: of each layer, see `MultiHeadAttention`.
            local_mask: of layers with a sliding window; None: `mask`.
        """
        x_BTD = self.token_embedding(tokens_BT)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * math.sqrt(self.config.d_model)  # 3.4
        if self.position_embedding is not None:
            x_BTD = self.position_embedding(x_BTD, positions)
        x_BTD = self.dropout(x_BTD)
        rotation = local_rotation = None if self.rotary is None else self.rotary(positions)
        if self.local_rotary is not None:
            local_rotation = self.local_rotary(positions)
        for i, layer in enumerate(self.layers):
            layer_mask = mask if local_mask is None or not self.is_local[i] else local_mask
            layer_rotation = (local_rotation if self.is_local[i] else rotation) if self.rotates[i] else None
            x_BTD = layer(x_BTD, layer_rotation, layer_mask, None if updates is None else updates[i])
        return self.final_norm(x_BTD)

    def _positions(self, length: int, attention_mask_BT: Tensor | None, device: torch.device) -> Tensor:
        """(T,), or with padding (B, T): the first token after left padding has position 0."""
        if attention_mask_BT is None:
            return torch.arange(length, device=device)
        return (attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize all weights.

        Post-norm models follow the code of the paper: Xavier-uniform matrices, and embeddings of std D^-0.5, which are
        multiplied by sqrt(D) (3.4). If they are not, their std is 1, so that the sinusoids do not dominate the sum,
        except if they are tied to the head, which needs small weights. All other models follow GPT-2: normal with std
        0.02, and the two projections that write to the residual stream divided by sqrt(2 N), so that its variance does
        not grow with depth (Radford et al., 2019, 2.3). Biases are 0, norms the identity.
        """
        pre = self.config.norm_placement != "post"
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
        """The device of the weights."""
        return self.token_embedding.weight.device

    def parameter_count(self) -> int:
        """Number of parameters; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


class Embedding(nn.Embedding):
    """`nn.Embedding` without its own initialization, for the reason given in `Linear`."""

    def reset_parameters(self) -> None:
        pass


def _positions_in_document(segment_ids_BT: Tensor) -> Tensor:
    """(B, T): the position of each token in its document."""
    column = torch.arange(segment_ids_BT.shape[1], device=segment_ids_BT.device)
    starts = F.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], (1, 0))  # bool, True at the first token
    return column - torch.where(starts, column, 0).cummax(dim=1).values


def _added_positions(config: ModelConfig) -> nn.Module | None:
    """The position embedding that is added to token embeddings; None for RoPE, which is applied in attention."""
    match config.positions:
        case "sinusoidal":
            return Sinusoidal(config)
        case "learned":
            return Learned(config)
        case "rotary":
            return None
        case other:
            raise ConfigError(f"there are no positions {other!r}.")


def check_capacity(length: int, cache: KVCache) -> None:
    """Raises: ContextLengthError if `length` exceeds the capacity of the cache."""
    if length > cache.capacity:
        raise ContextLengthError(f"{length} tokens do not fit in a cache of {cache.capacity}.")
