"""Scores and weights that are NaN or infinite are one sentence at every entry, never a text."""

from pathlib import Path

import pytest
import torch
from models import SENTENCES, tiny_model, tiny_model_directory, tiny_tokenizer
from safetensors.torch import load_file, save_file

import train as entry
from transformer.cli import main
from transformer.errors import CheckpointError, ConfigError
from transformer.evaluation import evaluate
from transformer.inference import Generator, SamplingOptions, TorchBackend, select_backend
from transformer.inference.finite import expect_finite
from transformer.inference.native import load_kernel
from transformer.inference.native.instruction_sets import missing, sets_of_machine
from transformer.inference.sampling import sample
from transformer.model import Transformer
from transformer.reporting import attention_page, tokens_page

TOKENIZER = tiny_tokenizer()
PRECISIONS = ["fp32", "bf16", "int8"]


def torch_served(model: Transformer, precision: str) -> TorchBackend:
    if precision == "int8" and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch has no int8")
    return TorchBackend(model, precision)  # type: ignore[arg-type]


def served_here(model: Transformer, precision: str):
    if all(missing(instructions) for instructions in sets_of_machine()):
        pytest.skip("this processor lacks the instructions of the C backend")
    assert load_kernel() is not None, "with the instructions, the kernel must load"
    return select_backend(model, precision)


SERVED = pytest.mark.parametrize("serve", [torch_served, served_here])


def model_with(value: float, name: str) -> Transformer:
    model = tiny_model("modern", vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[5] = value
    return model


@SERVED
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.1.feed_forward.up.weight", "final_norm.weight", "token_embedding.weight"])
def test_weights_that_are_no_numbers_are_not_served(serve, precision: str, value: float, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}'.*NaN or infinite"):
        serve(model_with(value, name), precision)


@SERVED
@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers_that_become_infinite_within_are_a_sentence_too(serve, precision: str) -> None:
    model = tiny_model("modern", vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        model.layers[0].feed_forward.up.weight.mul_(1e30)
        model.layers[0].feed_forward.gate.weight.mul_(1e30)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        "".join(Generator(serve(model, precision), TOKENIZER).generate("The", SamplingOptions(max_tokens=3)))


@SERVED
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}])
def test_scores_that_become_infinite_are_a_sentence(serve, precision: str, options: dict) -> None:
    model = tiny_model("modern", vocab_size=TOKENIZER.vocab_size, tie_embeddings=False)
    with torch.no_grad():
        model.final_norm.weight.mul_(1e20)  # each is a number, their products are not
        model.head.weight.mul_(1e20)
    generator = Generator(serve(model, precision), TOKENIZER)
    chosen = SamplingOptions(max_tokens=3, **options)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        "".join(generator.generate("The", chosen))
    with pytest.raises(CheckpointError, match="not finite numbers"):
        generator.generate_batch(["The", "a"], chosen)
    with pytest.raises(CheckpointError, match="not finite numbers"):
        evaluate(generator.model, TOKENIZER, SENTENCES)


def test_pages_of_such_a_model_are_a_sentence() -> None:
    model = model_with(float("nan"), "layers.0.feed_forward.up.weight")
    for page in (attention_page, tokens_page):
        with pytest.raises(CheckpointError, match="not finite numbers"):
            page(model, TOKENIZER, "The river", "a model")
    with pytest.raises(CheckpointError, match="not finite numbers"):
        evaluate(model, TOKENIZER, SENTENCES)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model_directory(tmp_path_factory.mktemp("damaged"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text("a card", encoding="utf-8")
    (folder / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "The", "--model", "{}"],
        ["predict", "The", "--model", "{}", "--num-outputs", "3"],
        ["chat", "--model", "{}"],
        ["evaluate", "--model", "{}", "--data", "{}/text.txt", "--split", "train"],
        ["evaluate", "--model", "{}", "--data", "{}/text.txt", "--split", "train", "--dtype", "int8", "--json"],
        ["show", "tokens", "The", "--model", "{}", "--output", "{}/page.html"],
        ["show", "attention", "The", "--model", "{}", "--output", "{}/page.html"],
        ["push", "{}", "user/name"],
    ],
)
def test_every_command_ends_with_one_sentence(command: list[str], damaged: Path, capsys) -> None:
    assert main([part.replace("{}", str(damaged)) for part in command]) == 1
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and "'model.layers.0.mlp.up_proj.weight' holds numbers that are NaN" in error
    assert out == "" and not (damaged / "page.html").exists()


def test_training_does_not_begin_from_such_weights(damaged: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(damaged / "text.txt"), "--init-from", str(damaged), "--output", str(tmp_path / "out")]
    assert entry.main([*arguments, "--max-steps", "1"]) == 1
    assert "'model.layers.0.mlp.up_proj.weight' holds numbers that are NaN" in capsys.readouterr().err


# ---- temperatures ----


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-40, 1e-20, 1e-8, 1e-4, 1e-3])
@pytest.mark.parametrize("rest", [{}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}, {"min_p": 1e-300, "top_p": 1e-300}])
def test_the_lowest_temperatures_give_the_greedy_text(temperature: float, rest: dict) -> None:
    generator = Generator(tiny_model("modern", vocab_size=TOKENIZER.vocab_size), TOKENIZER)

    def text(**options: float) -> str:
        return "".join(generator.generate("The river", SamplingOptions(max_tokens=20, **options)))

    assert text(temperature=temperature, seed=1, **rest) == text(temperature=0)


@pytest.mark.parametrize("temperature", [1.1e-3, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("rest", [{}, {"top_k": 0}, {"top_k": 0, "top_p": 1.0}, {"repetition_penalty": 1e-30}])
def test_finite_scores_of_any_size_can_be_drawn_from(temperature: float, scale: float, rest: dict) -> None:
    logits = scale * torch.linspace(-1, 1, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    logits[7] = -torch.inf  # an end of text that is held back
    expect_finite(torch.cat([logits[:7], logits[8:]]))
    options = SamplingOptions(temperature=temperature, **rest)
    seen = torch.tensor([[7, 8]]).expand(50, 2)
    chosen = sample(logits.expand(50, 60), options, seen, torch.Generator().manual_seed(0))
    assert not (chosen == 7).any()
    if scale >= 1e30 and not rest.get("repetition_penalty"):
        assert (chosen == logits.argmax()).all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"top_k": 10**400}, "top_k"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"repetition_penalty": 10**400}, "repetition_penalty"),
    ],
)
def test_numbers_out_of_any_range_are_refused_by_name(options: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        SamplingOptions(**options)
    assert SamplingOptions(seed=2**63 - 1).seed == 2**63 - 1


def test_the_largest_seed_is_a_seed(damaged: Path, tmp_path: Path, capsys) -> None:
    folder = tiny_model_directory(tmp_path)
    command = ["predict", "The", "--model", str(folder), "--max-tokens", "5", "--seed"]
    texts = set()
    for seed in (2**63 - 1, 2**63 - 1, 0):
        assert main([*command, str(seed)]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 2
    for seed in ("-1", str(2**63), "9" * 5000):
        status = run(*command, f"{seed}")
        assert status != 0
        error = capsys.readouterr().err
        assert "seed" in error and "Traceback" not in error


def run(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as stopped:  # argparse
        return int(stopped.code or 0)
