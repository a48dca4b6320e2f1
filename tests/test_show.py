"""Looking inside: the weights are the model's own, the totals those of the evaluation, and a browser shows them."""

import base64
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import FEATURES, SENTENCES, tiny_model, tiny_model_directory, tiny_tokenizer

from transformer.cli import main
from transformer.data.tokenizer import Tokenizer
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.model.attention import MultiHeadAttention
from transformer.reporting import attention_page, tokens_page
from transformer.reporting.attention_page import MOST_TOKENS
from transformer.reporting.attention_weights import weights_of
from transformer.reporting.token_text import name_of, tokens_of, visible

NASTY = "</span></script><script>alert(1)</script> ]]> & \"q\" 'a' \x00\x07\u202e \ud83d"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


def ids(length: int = 20) -> torch.Tensor:
    return torch.randint(2, 300, (length,), generator=torch.Generator().manual_seed(0))


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def by_id(page: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(part for part in page.iter() if part.get("id") == name)


def shown(page: ElementTree.Element) -> str:
    """The text as the page shows it, without the token that begins it."""
    return "".join(text_of(part) for part in list(by_id(page, "text"))[1:])


def numbers_of(page: str) -> dict:
    return json.loads(re.search(r"const DATA = (.*);\n", page)[1])


@pytest.mark.parametrize("preset", ["modern", "paper", "gpt2", "blog", *FEATURES])
@torch.inference_mode()
def test_the_weights_make_the_output_of_each_layer(preset: str) -> None:
    model, tokens = tiny_model(preset), ids()
    seen: list[tuple[MultiHeadAttention, tuple, torch.Tensor]] = []
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call)) for layer in layers]
    weights = weights_of(model, tokens)
    for hook in hooks:
        hook.remove()
    assert weights.shape == (2, 4, 20, 20)
    assert torch.equal(weights, weights.tril())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20))
    for layer_weights, (layer, (x, rotation, *_), output) in zip(weights, seen, strict=True):
        value = layer.project(x, rotation)[2][0].repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=0)
        heads = layer_weights @ value
        joined = heads.mean(0) if preset == "blog" else layer.output(heads.transpose(0, 1).flatten(1))
        torch.testing.assert_close(joined, output[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", ["modern", "paper", "gpt2"])
def test_transformers_has_the_same_weights(preset: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(preset)
    checkpoint.save(model, None, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = torch.stack(theirs(ids()[None], output_attentions=True).attentions)[:, 0]
    torch.testing.assert_close(weights_of(model, ids()), expected, atol=1e-5, rtol=1e-3)


def test_padding_by_the_models_own_rule_gets_no_weight() -> None:
    tokens = torch.cat([torch.full((5,), 299), ids(10)])
    weights = weights_of(tiny_model("blog", pad_token_id=299), tokens)
    assert (weights[..., :5] == 0).all()
    torch.testing.assert_close(weights[:, :, 5:].sum(-1), torch.ones(2, 4, 10))


def test_looking_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2", dropout=0.5).train()
    weights_of(model, ids())
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@given(st.text(alphabet=st.characters() | st.sampled_from("🦞 e\n東م\u0301"), max_size=30))
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer_once()
    pieces = tokenizer.pieces(text)
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "".join(piece for _, piece in pieces) == clean
    assert [token for token, _ in pieces] == tokenizer.encode_documents([clean])[0]


def tiny_tokenizer_once(kept: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006  # a test by examples has no fixtures
    return kept[0] if kept else kept.append(tiny_tokenizer()) or kept[0]


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_the_pieces_of_known_tokenizers_are_the_text_too(name: str, shared: Path) -> None:
    tokenizer = Tokenizer.load(shared / "tokenizers" / name)
    for text in (*SENTENCES, " a  b\n\nc\t", "Ünïcode 🦞🏳️‍🌈 مرحبا"):
        pieces = tokenizer.pieces(text)
        assert "".join(piece for _, piece in pieces) == text
        assert [token for token, _ in pieces] == tokenizer.encode_documents([text])[0]


def test_the_first_token_of_a_character_has_it(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces("a🦞b")
    assert len(pieces) > 3 and [piece for _, piece in pieces] == ["a", "🦞", *[""] * (len(pieces) - 3), "b"]


def test_what_cannot_be_seen_has_a_sign() -> None:
    assert visible("a\n\tb\x00\x1b\u202e") == "a↵\n⇥\tb␀␛⟨U+202E⟩"


@pytest.mark.parametrize("make", [attention_page, tokens_page])
def test_a_text_is_shown_as_it_is_and_is_never_markup(make, tokenizer: Tokenizer) -> None:
    page = make(tiny_model(vocab_size=tokenizer.vocab_size, context_length=256), tokenizer, NASTY, "<b>R&D</b>")
    parsed = ElementTree.fromstring(page)
    assert shown(parsed) == visible(NASTY.replace("\ud83d", "\ufffd"))
    assert len(list(parsed.iter("script"))) == page.count("<script") == page.count("</script") == 1
    assert not list(parsed.iter("b")) or make is tokens_page  # its totals are bold
    assert "<b>R&D</b>" in text_of(parsed.find(".//header"))


@pytest.mark.parametrize("make", [attention_page, tokens_page])
def test_a_page_needs_nothing_from_elsewhere(make, tokenizer: Tokenizer) -> None:
    page = make(tiny_model(vocab_size=tokenizer.vocab_size, context_length=64), tokenizer, SENTENCES[0], "a model")
    parsed = ElementTree.fromstring(page)
    assert not any(part.get("src") or part.get("href") for part in parsed.iter())
    assert not {part.tag for part in parsed.iter()} & {"link", "img", "iframe"}
    assert not re.search(r"url\(|@import|https?:|import\(|fetch\(", page)


def test_the_page_of_attention_holds_every_weight(tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    page = attention_page(model, tokenizer, SENTENCES[0][:24], "a model")
    tokens = tokens_of(tokenizer, SENTENCES[0][:24])
    numbers = numbers_of(page)
    kept = np.frombuffer(base64.b64decode(numbers["weights"]), "<u2").reshape(2, 4, -1) / 65535
    rows, columns = np.tril_indices(len(tokens))
    expected = weights_of(model, torch.tensor([token.id for token in tokens]))[..., rows, columns]
    np.testing.assert_allclose(kept, expected.numpy(), atol=1e-5)
    assert numbers["names"] == [name_of(tokenizer, token) for token in tokens]
    assert len(list(by_id(ElementTree.fromstring(page), "heads").iter("button"))) == 8


@pytest.mark.parametrize(("context", "most"), [(32, 32), (2048, MOST_TOKENS)])
def test_of_a_long_text_the_page_of_attention_shows_the_beginning_and_says_so(
    context: int, most: int, tokenizer: Tokenizer
) -> None:
    model = tiny_model(vocab_size=tokenizer.vocab_size, context_length=context, n_layers=1, n_heads=2)
    text = " ".join(SENTENCES * 8)
    page = attention_page(model, tokenizer, text, "a model")
    assert f"The first {most} of its {len(tokens_of(tokenizer, text)):,} tokens are shown." in page
    assert len(numbers_of(page)["names"]) == most


@pytest.mark.parametrize("context", [16, 512])
def test_the_totals_are_those_of_the_evaluation(context: int, tokenizer: Tokenizer) -> None:
    model, text = tiny_model(vocab_size=tokenizer.vocab_size, context_length=context), " ".join(SENTENCES)
    page = ElementTree.fromstring(tokens_page(model, tokenizer, text, "a model"))
    expected = evaluate(model, tokenizer, [text])
    tiles = {tile.findtext("dt", ""): tile.findtext("dd/b", "") for tile in page.findall(".//dl/div")}
    assert tiles == {
        "Text": f"{expected.tokens:,}",
        "Surprisal": f"{expected.nats:,.1f}",
        "Mean": f"{expected.nats / expected.tokens:.3f}",
        "Perplexity": f"{expected.token_perplexity:,.2f}",
        "Compression": f"{expected.bits_per_byte:.3f}",
    }
    assert ("longer than the model's context" in text_of(page)) == (expected.tokens > context)


def test_each_token_has_its_surprisal_rank_and_alternatives(tokenizer: Tokenizer) -> None:
    model, text = tiny_model(vocab_size=tokenizer.vocab_size, context_length=64), "The tower 🦞"
    numbers = numbers_of(tokens_page(model, tokenizer, text, "a model"))
    tokens = torch.tensor([token.id for token in tokens_of(tokenizer, text)])
    with torch.inference_mode():
        probabilities = model(tokens[None])[0].softmax(-1).double().numpy()
    for number, token in list(enumerate(numbers["tokens"]))[1:]:
        before, own = probabilities[number - 1], int(tokens[number])
        assert token["id"] == own
        assert token["nats"] == pytest.approx(-math.log(before[own]), abs=1e-3)
        assert token["rank"] == 1 + (before > before[own]).sum()
        assert [likely for likely, _ in token["likeliest"]] == np.argsort(-before)[:5].tolist()
        assert [part for _, part in token["likeliest"]] == pytest.approx(np.sort(before)[::-1][:5].tolist(), abs=1e-4)


def test_the_command_writes_the_page_that_it_names(tmp_path: Path, capsys) -> None:
    model, output = str(tiny_model_directory(tmp_path / "model")), tmp_path / "page.html"
    for what in ("attention", "tokens"):
        assert main(["show", what, "The river", "--model", model, "--output", str(output)]) == 0
        assert capsys.readouterr().out.strip() == str(output)
        assert shown(ElementTree.fromstring(output.read_text(encoding="utf-8"))) == "The river"
    assert main(["show", "tokens", "", "--model", model, "--output", str(output)]) == 1
    assert "no text" in capsys.readouterr().err


def in_a_browser(page: str, folder: Path, script: str) -> ElementTree.Element:
    """The <body> of the page after its own script and this one have run."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=2000 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    body = re.sub(r"<script>.*?</script>", "", dom[dom.index("<body") : dom.index("</body>") + 7], flags=re.DOTALL)
    body = re.sub(r"<(input[^>]*)>", r"<\1/>", body).replace("&nbsp;", "\u00a0")
    return ElementTree.fromstring(body)


def test_a_browser_shows_the_weights_of_the_chosen_head_and_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, text = tiny_model(vocab_size=tokenizer.vocab_size, context_length=64), "The tower is tall."
    page = attention_page(model, tokenizer, text, "a model")
    script = """
    document.querySelector('button[data-layer="1"][data-head="2"]').click();
    tokens[4].click();
    tokens[4].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    tokens[3].dispatchEvent(new MouseEvent("mouseenter"));
    const pixels = document.getElementById("map").getContext("2d").getImageData(0, 0, size, size).data;
    document.getElementById("chosen").dataset.alpha = [0, 1].map((i) => pixels[4 * (size * i + 1) + 3]).join();
    """
    body = in_a_browser(page, tmp_path, script)
    weights = weights_of(model, torch.tensor([token.id for token in tokens_of(tokenizer, text)]))[1, 2]
    assert text_of(by_id(body, "chosen")) == "Layer 2, head 3"
    words = list(by_id(body, "text"))
    assert "chosen" in words[5].get("class", "") and words[5].get("tabindex") == "0"
    for element, weight in zip(words, weights[5].tolist(), strict=True):
        told = float(re.search(r": ([\d.]+) %", element.get("title", ""))[1])
        assert told == pytest.approx(100 * weight, abs=0.06)
        assert ("later" in element.get("class", "")) == (words.index(element) > 5)
    told = re.search(r"token 5\) attends to .* \(token 3\): ([\d.]+) %$", text_of(by_id(body, "told")))
    assert float(told[1]) == pytest.approx(100 * weights[5, 3].item(), abs=0.06)
    most = [text_of(row.findall("td")[0]) for row in by_id(body, "most").iter("tr")]
    names = [name_of(tokenizer, token) for token in tokens_of(tokenizer, text)]
    assert most == [names[i] for i in weights[5].argsort(descending=True).tolist()[: len(most)]] and len(most) == 6
    above, below = map(int, by_id(body, "chosen").get("data-alpha", "").split(","))
    assert above == 0 and below == pytest.approx(255 * math.sqrt(weights[1, 1]), abs=2)


def test_a_browser_tells_of_the_token_that_is_pointed_at(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiny_model(vocab_size=tokenizer.vocab_size, context_length=64)
    page = tokens_page(model, tokenizer, "The tower", "a model")
    script = """
    tokens[2].dispatchEvent(new MouseEvent("mouseenter"));
    const radio = document.querySelector('input[value="boundaries"]');
    radio.click();
    """
    body, token = in_a_browser(page, tmp_path, script), numbers_of(page)["tokens"][2]
    told = text_of(by_id(body, "told"))
    assert f"“{token['name']}” token 2, id {token['id']}" in told
    assert f"{token['nats']:.2f} nats" in told and f"rank {token['rank']:,} of {tokenizer.vocab_size:,}" in told
    assert len(list(by_id(body, "told").iter("li"))) == 5
    assert by_id(body, "text").get("class") == "text boundaries"
