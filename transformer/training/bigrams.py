"""Initialization of a model as the bigram model of its text.

Bigrams can be counted instead of trained. The table of log P(next | token) is reduced to the width of the model by a
truncated singular value decomposition (as word vectors are from counts: Levy & Goldberg, 2014) and becomes the
embeddings and the vocabulary projection. The layers are initialized to add nothing to the residual stream.
"""

from __future__ import annotations

import numpy as np
import torch

from transformer.errors import ConfigError
from transformer.model import Transformer

_SMOOTHING = 100.0  # pseudo-counts for each token, distributed as the unigrams are
_UNIGRAM_SIZE = 1.5  # of the dimension for log P(next), in root mean squares of the other dimensions
_EMBEDDING_SIZE = 0.3  # root mean square of the embeddings; the layers add much less than 1


@torch.no_grad()
def start_from_bigrams(model: Transformer, tokens: np.ndarray) -> None:
    """Set the weights of an untrained model so that it predicts like the bigrams of `tokens`, (N,) ids.

    Raises:
        ConfigError: if the model has tied embeddings or no final norm.
    """
    config = model.config
    if config.tie_embeddings or config.norm_placement != "pre":
        raise ConfigError("start_from_bigrams needs a preset with pre-norm, and --no-tie-embeddings.")
    size, width = config.vocab_size, config.d_model
    text = torch.from_numpy(tokens.astype(np.int64))
    pairs, counts = (text[:-1] * size + text[1:]).unique(return_counts=True)
    token, following = pairs // size, pairs % size
    seen = text[:-1].bincount(minlength=size) + 1.0
    unigram = text.bincount(minlength=size) + 1.0
    unigram /= unigram.sum()

    # log P(next | token) = log P(next) + log(1 + count / (smoothing · P(next))) + a term that does not depend on next.
    # The second term is 0 for most pairs. The decomposition weights tokens by their frequency.
    weight = seen.sqrt()
    gain = torch.log1p(counts / (_SMOOTHING * unigram[following])) * weight[token]
    with torch.sparse.check_sparse_tensor_invariants(False):
        table = torch.sparse_coo_tensor(torch.stack([token, following]), gain, (size, size)).coalesce()
        left, values, right = torch.svd_lowrank(table, q=width - 1, niter=2)
    embedding, projection = left * values.sqrt() / weight[:, None], right * values.sqrt()

    def typical() -> torch.Tensor:
        """Root mean square of the embeddings, weighted by the frequency of the tokens."""
        return (embedding.square().mean(dim=1).sqrt() * seen).sum() / seen.sum()

    # One more dimension, the same for all tokens, is for log P(next).
    constant = _UNIGRAM_SIZE * typical() * width**0.5
    log_unigram = unigram.log() - (unigram * unigram.log()).sum()
    embedding = torch.cat([embedding, constant.expand(size, 1)], dim=1)
    projection = torch.cat([projection, log_unigram[:, None] / constant], dim=1)

    # The final norm scales embeddings to a root mean square of one.
    model.head.weight.copy_(projection * typical())
    model.token_embedding.weight.copy_(embedding / typical() * _EMBEDDING_SIZE)
    for name, parameter in model.layers.named_parameters():
        if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
            parameter.zero_()
