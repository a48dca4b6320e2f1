"""The architecture: what must hold for every preset, and the parts against independent implementations."""

import math

import pytest
import torch
import torch.nn.functional as F
from models import FEATURES, new_model, tiny_config, tiny_model

from transformer.errors import ConfigError, ContextLengthError
from transformer.legacy import model_class, preset_config
from transformer.model import PRESETS, KVCache, ModelConfig, Transformer
from transformer.model.attention import attention, causal_attention, causal_mask
from transformer.model.layers import Dropout
from transformer.model.positions import Rotary, apply_rope, sinusoids

EVERY_PRESET = [*PRESETS, "blog", "blog-sum", *FEATURES]


def preset_model(name: str, **overrides: object) -> Transformer:
    if name == "blog-sum":
        return tiny_model("blog", heads="sum", **overrides)
    return tiny_model(name, **overrides)


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 300, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", EVERY_PRESET)
def test_future_tokens_never_change_past_logits(preset: str) -> None:
    model, a = preset_model(preset), tokens(2, 32)
    for changed in (1, 7, 31):
        b = a.clone()
        b[:, changed:] = (b[:, changed:] + 17) % 300
        before, after = model(a), model(b)
        torch.testing.assert_close(before[:, :changed], after[:, :changed])
        assert not torch.allclose(before[:, changed], after[:, changed])


@pytest.mark.parametrize("preset", EVERY_PRESET)
def test_every_past_token_changes_the_last_logits(preset: str) -> None:
    model, a = preset_model(preset), tokens(1, 32)
    last = model(a)[0, -1]
    for position in range(31):
        b = a.clone()
        b[0, position] = (b[0, position] + 17) % 300
        assert (model(b)[0, -1] - last).abs().max() > 1e-6, position


def decoded(model: Transformer, cache: KVCache, ids: torch.Tensor, first: int) -> torch.Tensor:
    """(B, T - first, V) logits of rows of one length, decoded after a prompt of `first` tokens."""
    for row, sequence in enumerate(ids.tolist()):
        model.prefill(sequence[:first], cache, row)
    return torch.stack([model.decode(column, cache) for column in ids[:, first:].T], dim=1)


@pytest.mark.parametrize("preset", EVERY_PRESET)
@pytest.mark.parametrize("first", [0, 1, 5, 31])
def test_cached_equals_full_token_by_token_to_the_context_limit(preset: str, first: int) -> None:
    model, ids = preset_model(preset), tokens(2, 32)
    cache = model.new_cache(2, 32)
    torch.testing.assert_close(decoded(model, cache, ids, first), model(ids)[:, first:], atol=2e-5, rtol=1e-4)
    with pytest.raises(ContextLengthError):
        model.decode(ids[:, 0], cache)
    with pytest.raises(ContextLengthError):
        model.prefill([1] * 33, cache, 0)


@pytest.mark.parametrize("preset", EVERY_PRESET)
def test_a_sequence_that_is_read_again_replaces_the_one_before(preset: str) -> None:
    model, ids = preset_model(preset), tokens(2, 30)
    cache = model.new_cache(2, 32)
    decoded(model, cache, tokens(2, 25, seed=5), 20)
    torch.testing.assert_close(decoded(model, cache, ids, 11), model(ids)[:, 11:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", EVERY_PRESET)
def test_sequences_of_different_lengths_are_copied_and_dropped(preset: str) -> None:
    model, ids = preset_model(preset), tokens(3, 24)
    expected, cache = model(ids), model.new_cache(4, 32)
    for row, length in enumerate((3, 9, 14)):
        model.prefill(ids[row, :length].tolist(), cache, row)
    cache.copy(1, 3)
    cache.drop(0)  # the copy moves into its row
    assert cache.lengths == [9, 9, 14]
    for step in range(5):
        logits = model.decode(torch.stack([ids[1, 9 + step], ids[1, 9 + step], ids[2, 14 + step]]), cache)
        for row, place in enumerate(((1, 9 + step), (1, 9 + step), (2, 14 + step))):
            torch.testing.assert_close(logits[row], expected[place], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", EVERY_PRESET)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded(preset: str, side: str) -> None:
    model, lengths = preset_model(preset), [20, 13, 1]
    ids = torch.full((3, 20), 299)
    real = torch.zeros(3, 20, dtype=torch.bool)
    rows = [tokens(length, seed=length) for length in lengths]
    for i, row in enumerate(rows):
        where = slice(20 - len(row), 20) if side == "left" else slice(0, len(row))
        ids[i, where], real[i, where] = row, True
    padded = model(ids, real)
    assert padded.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(padded[i][real[i]], model(row[None])[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", EVERY_PRESET)
def test_a_wholly_padded_row_gives_no_nan_and_finite_gradients(preset: str) -> None:
    model = preset_model(preset)
    real = torch.ones(2, 8, dtype=torch.bool)
    real[1] = False
    logits = model(tokens(2, 8), real)
    assert logits.isfinite().all()
    logits[0].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_original_takes_padding_from_the_token_ids_and_counts_it_in_positions() -> None:
    model = tiny_model("blog", pad_token_id=299)
    row = tokens(20, seed=3) % 299
    ids = torch.cat([torch.full((6,), 299), row])[None]
    logits = model(ids)[0, 6:]
    # The same sinusoids, as if the row began at place 6, and nobody looks at the first six.
    by_hand = tiny_model("blog")
    by_hand.position_embedding.table_CD = by_hand.position_embedding.table_CD.roll(-6, dims=0)
    torch.testing.assert_close(logits, by_hand(row[None])[0], atol=2e-5, rtol=1e-4)


def test_the_originals_padding_is_in_the_cache() -> None:
    model = tiny_model("blog", pad_token_id=299)
    ids = tokens(2, 20, seed=3) % 299
    ids[0, :7], ids[1, 4] = 299, 299
    expected = model(ids)
    for first in (0, 3, 7):
        logits = decoded(model, model.new_cache(2, 20), ids, first)
        for row in range(2):  # at padding itself nothing is predicted
            real = ids[row, first:] != 299
            torch.testing.assert_close(logits[row][real], expected[row, first:][real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_fused_kernel_computes_the_written_formula(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 9, 16, generator=generator)
    key, value = (torch.randn(3, kv_heads, 9, 16, generator=generator) for _ in range(2))
    real = torch.ones(3, 9, dtype=torch.bool)
    real[1, :4] = False
    real[2] = False
    mask = causal_mask(9, attention_mask=real)
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    repeated = [x.repeat_interleave(4 // kv_heads, dim=1) for x in (key, value)]
    torch.testing.assert_close(fused, attention(query, *repeated, mask), atol=1e-5, rtol=1e-4)
    causal = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(causal, attention(query, *repeated, causal_mask(9)), atol=1e-5, rtol=1e-4)


def test_causal_mask_behind_a_past() -> None:
    assert causal_mask(2, past=3).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert causal_mask(2, past=3, window=2).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 16)
    for pos in (0, 1, 49):
        for i in range(8):
            angle = pos / 10000 ** (2 * i / 16)
            assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = Rotary(tiny_config("modern", context_length=64))
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(i: int, j: int) -> torch.Tensor:
        return (apply_rope(query, rotary(torch.tensor([i]))) * apply_rope(key, rotary(torch.tensor([j])))).sum()

    torch.testing.assert_close(product(5, 2), product(50, 47), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(product(5, 2), product(5, 3))


def test_blog_averages_d_model_wide_heads_without_a_projection() -> None:
    averaged = tiny_model("blog").layers[0].attention
    summed = tiny_model("blog", heads="sum").layers[0].attention
    summed.load_state_dict(averaged.state_dict())
    assert averaged.value.weight.shape == (4 * 32, 32) and averaged.query.weight.shape == (4 * 8, 32)
    assert not hasattr(averaged, "output")
    x = torch.randn(1, 6, 32)
    torch.testing.assert_close(summed(x), 4 * averaged(x))


@pytest.mark.parametrize(("preset", "millions"), [("paper", 44.6), ("gpt2", 44.9), ("modern", 42.6), ("blog", 79.9)])
def test_parameter_counts_at_the_size_of_the_paper(preset: str, millions: float) -> None:
    with torch.device("meta"):
        config = preset_config(preset, vocab_size=50257, d_model=512, n_layers=6, n_heads=8)
        model = model_class(config)(config, initialize=False)
    assert model.parameter_count() / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("preset", [*PRESETS, "blog"])
def test_a_new_model_knows_nothing(preset: str) -> None:
    torch.manual_seed(0)
    model = new_model(tiny_config(preset, d_model=128, vocab_size=1000))
    loss = F.cross_entropy(model(tokens(8, 32)).flatten(0, 1), tokens(8, 32, seed=2).flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.75)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_attention_in_blocks_equals_the_fused_kernel_forward_and_backward(length: int) -> None:
    random = torch.Generator().manual_seed(length)
    parts = [torch.randn(2, heads, length, 16, generator=random).requires_grad_() for heads in (4, 2, 2)]
    upstream = torch.randn(2, 4, length, 16, generator=random)
    fused = F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
    blocks = causal_attention(*parts)
    torch.testing.assert_close(blocks, fused, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(blocks, parts, upstream), torch.autograd.grad(fused, parts, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("length", "window"), [(100, 7), (300, 1), (300, 40), (700, 200), (700, 300)])
def test_attention_in_blocks_looks_at_its_window_alone(length: int, window: int) -> None:
    random = torch.Generator().manual_seed(length)
    parts = [torch.randn(2, heads, length, 16, generator=random).requires_grad_() for heads in (4, 2, 2)]
    upstream = torch.randn(2, 4, length, 16, generator=random)
    mask = torch.tensor([[0 <= query - key < window for key in range(length)] for query in range(length)])
    fused = F.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True)
    blocks = causal_attention(*parts, window)
    torch.testing.assert_close(blocks, fused, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(blocks, parts, upstream), torch.autograd.grad(fused, parts, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_layers_with_a_window_see_no_further() -> None:
    """In two layers a token is seen twice as far away, and never beyond: in one pass, in bf16 training, and decoded."""
    model, ids = tiny_model("modern", sliding_window=5), tokens(1, 32)
    changed = ids.clone()
    changed[0, 10] = (changed[0, 10] + 17) % 300
    seen = torch.zeros(32, dtype=torch.bool)
    seen[10:19] = True
    for bf16 in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            assert torch.equal((model(ids) != model(changed))[0].any(-1), seen)
    before, after = (decoded(model, model.new_cache(1, 32), row, 7)[0] for row in (ids, changed))
    assert torch.equal((before != after).any(-1), seen[7:])


def test_training_in_bf16_computes_the_same_attention_as_inference() -> None:
    model, ids = tiny_model("modern", dropout=0.0), tokens(2, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = model(ids)
        with torch.no_grad():
            inferred = model(ids)
    torch.testing.assert_close(trained.float(), inferred.float(), atol=0.06, rtol=0.03)


def test_dropout_zeroes_each_number_by_itself_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = Dropout(0.25)(torch.ones(64, 1001))
    kept = out != 0
    assert torch.equal(out[kept], torch.full_like(out[kept], 4 / 3))
    assert abs(kept.double().mean() - 0.75) < 0.01
    for step in (1, 2, 7, 8, 1001):  # neighbours, bytes of one word, the same place in the next row
        both = (kept.flatten()[:-step] & kept.flatten()[step:]).double().mean()
        assert abs(both - 0.75**2) < 0.01, step
    assert not torch.equal(out, Dropout(0.25)(torch.ones(64, 1001))), "the same mask twice"
    gradient = torch.ones(8, 8, requires_grad=True)
    dropped = Dropout(0.5)(gradient)
    dropped.sum().backward()
    assert torch.equal(gradient.grad, dropped.detach())


def test_dropout_acts_in_training_alone() -> None:
    model, ids = tiny_model("paper", dropout=0.5), tokens(1, 8)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(d_model=30), "n_heads"),
        (dict(n_layers=0), "n_layers"),
        (dict(n_kv_heads=3), "n_kv_heads"),
        (dict(positions="none"), "positions"),
        (dict(dropout=1.0), "dropout"),
        (dict(vocab_size=1.5), "vocab_size"),
        (dict(head_dim=7), "head_dim"),
        (dict(qk_norm=False, joint_qk_norm=True), "joint_qk_norm needs qk_norm"),
        (dict(query_pre_attn_scalar=0), "query_pre_attn_scalar must be a number above 0"),
        (dict(rope_local_theta=1e4), "rope_local_theta needs rotary positions and a sliding_window"),
        (dict(rope_layers=(True,)), "rope_layers .* each of 2 layers"),
        (dict(rope_layers=(True, False), positions="learned"), "rope_layers needs rotary positions"),
        (dict(sliding_window=0), "sliding_window must be a positive whole number, not 0"),
        (dict(sliding_window=True), "sliding_window must be"),
        (dict(sliding_window_layers=(True, False)), "sliding_window_layers needs a sliding_window"),
        (dict(sliding_window=4, sliding_window_layers=(True,)), "sliding_window_layers .* each of 2 layers"),
        (dict(sliding_window=4, sliding_window_layers=(1, 0)), "sliding_window_layers .* each of 2 layers"),
        (dict(sliding_window=4, sliding_window_layers=(False, False)), "names no layer"),
    ],
)
def test_a_config_that_cannot_work_says_which_field(options: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        tiny_config("modern", **options)
    with pytest.raises(ConfigError, match="preset"):
        ModelConfig.preset("gpt5", vocab_size=10)


def test_a_config_of_the_blog_that_cannot_work_says_which_field() -> None:
    for options in (dict(n_kv_heads=2), dict(heads="concatenate"), dict(pad_token_id=300), dict(sliding_window=4)):
        with pytest.raises(ConfigError, match=next(iter(options))):
            tiny_config("blog", **options)
    with pytest.raises(ConfigError, match="blog"):
        preset_config("gpt5", vocab_size=10)


def test_a_choice_that_a_module_does_not_know_is_refused() -> None:
    """However the config came by it, no other activation, norm or position is computed in its place."""
    for name in ("activation", "norm", "positions"):
        config = tiny_config("modern")
        object.__setattr__(config, name, "unknown")
        with pytest.raises(ConfigError, match="unknown"):
            Transformer(config)


def test_more_tokens_than_the_context_are_refused() -> None:
    model = tiny_model("modern")
    with pytest.raises(ContextLengthError, match="33 tokens"):
        model(tokens(1, 33))
    with pytest.raises(ContextLengthError):
        model.new_cache(1, 33)


@pytest.mark.parametrize("preset", ["local", "sandwich"])
def test_a_layer_with_a_window_caches_no_more_than_that(preset: str) -> None:
    model = preset_model(preset)
    cache = model.new_cache(2, 32)
    assert [keys.shape[2] for keys in cache.keys] == [values.shape[2] for values in cache.values] == [5, 32]
    assert [keys.shape[2] for keys in model.new_cache(2, 3).keys] == [3, 3]
    ids = tokens(2, 32)
    for first in (4, 5, 6, 13):  # the cache of the window is not full, full, and begun again
        for row, length in enumerate((first, first + 3)):
            model.prefill(ids[row, :length].tolist(), cache, row)
        for step in range(12):
            places = [first + step, first + 3 + step]
            logits = model.decode(torch.stack([ids[0, places[0]], ids[1, places[1]]]), cache)
            expected = torch.stack([model(ids)[row, place] for row, place in enumerate(places)])
            torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
