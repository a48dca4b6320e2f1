"""What a run is told: on the command line, in a file, by a preset."""

import re
import shlex
from pathlib import Path

import pytest

from transformer.errors import ConfigError
from transformer.legacy.blog_model import PRESET
from transformer.model import PRESETS
from transformer.reporting.model_card import command_line
from transformer.training.options import parse, presets, read
from transformer.training.train_config import OPTIONS, TrainConfig


def test_options_are_typed_and_hyphens_and_underscores_are_the_same() -> None:
    config = parse(["--data", "x", "--max-minutes", "60", "--price_per_hour=0.4", "--max-cost", "5", "--compile"])
    assert config == TrainConfig.from_options("x", max_minutes=60.0, price_per_hour=0.4, max_cost=5.0, compile=True)
    assert parse(["--data", "x", "--whole-tokens", "<unk>", "<s>"]).text.whole_tokens == ("<unk>", "<s>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "--data"), (["--data", "x", "--max-steps", "many"], "--max-steps"), (["--data", "x", "--speed"], "--speed")],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    output = capsys.readouterr()
    assert said in output.out + output.err


def test_help_shows_every_option_with_its_default_and_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--learning-rate" in text and "(default: 0.002)" in text and "--config" in text
    assert all(name in text for name in ("quick", "speedrun", "sprint", "wikitext-2", "wikitext-103"))


def test_help_lists_the_choices_in_groups_and_says_what_each_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    lines = [line.strip("│| ") for line in capsys.readouterr().out.splitlines()]
    groups = [line.strip("╭╮─+- ") for line in lines if line.strip("╭╮─+- ").endswith(" options")]
    assert groups == ["text options", "model options", "optimization options", "run options"]
    for choices in (
        "--preset {modern,paper,gpt2,blog}",
        "--schedule {cosine,linear,wsd}",
        "--optimizer {adamw,muon}",
        "--precision {auto,bf16,fp32}",
        "--parallel {ddp,fsdp}",
        "--preflight {stop,warn,off}",
    ):
        assert any(line.startswith(choices) for line in lines), choices
    text = " ".join(" ".join(lines).split())
    for name in OPTIONS:
        described = re.search(rf"--{name.replace('_', '-')}\b(.*?)\((?:default|required)", text)
        assert described and described[1].rstrip().endswith("."), f"{name} has no text"


def test_the_presets_are_those_of_the_models() -> None:
    assert set(OPTIONS["preset"].choices or ()) == {*PRESETS, PRESET}


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.choices])
def test_a_choice_is_checked_in_files_and_code_too(name: str, tmp_path: Path) -> None:
    expected = ", ".join(OPTIONS[name].choices or ())
    with pytest.raises(ConfigError, match=f"^{name} must be one of {expected}, not 'x'.$"):
        TrainConfig.from_options(**{"data": "x", name: "x"})
    (tmp_path / "run.yaml").write_text(f"data: x\n{name}: x\n")
    with pytest.raises(ConfigError, match=f"^{name} must be one of {expected}, not 'x'.$"):
        parse(["--config", str(tmp_path / "run.yaml")])


def test_a_number_beyond_its_interval_is_refused_with_the_interval() -> None:
    for name, value, expected in (
        ("learning_rate", 0, "a number more than 0"),
        ("weight_decay", -1, "a number of at least 0"),
        ("warmup_ratio", 1, r"in \[0, 1\)"),
        ("decay_ratio", 2, r"in \[0, 1\]"),
        ("ema_decay", 0, r"in \(0, 1\)"),
        ("max_minutes", 1e308, r"in \(0, 1000000000000.0\]"),
        ("max_epochs", 1e300, r"in \(0, 1000000000000.0\]"),
        ("max_cost", 1e13, r"in \(0, 1000000000000.0\]"),
        ("price_per_hour", 1e-308, r"in \[1e-12, 1000000000000.0\]"),
        ("batch_size", None, "int"),
    ):
        with pytest.raises(ConfigError, match=f"^{name} must be {expected}, not {re.escape(str(value))}.$"):
            TrainConfig.from_options("x", **{name: value})


def test_options_are_reached_by_name_whichever_group_they_are_in() -> None:
    config = TrainConfig.from_options("x", "out", d_model=32, learning_rate=0.1, stream=True)
    assert (config.text.stream, config.model.d_model) == (True, 32)
    assert (config.optimization.learning_rate, config.run.output) == (0.1, "out")
    assert config.changed() == {"data": "x", "output": "out", "d_model": 32, "learning_rate": 0.1, "stream": True}
    other = config.with_options(d_model=64)
    assert other.model.d_model == 64 and other.with_options(d_model=32) == config
    with pytest.raises(ConfigError, match="there is no option speed"):
        TrainConfig.from_options("x", speed=3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.yaml",
            "data: x\nlearning-rate: 3e-3\nmax_steps: 7\ncompile: true\nwhole_tokens: [<unk>]\ndropout: null\n",
        ),
        ("run.toml", 'data = "x"\nlearning_rate = 3e-3\nmax_steps = 7\ncompile = true\nwhole-tokens = ["<unk>"]\n'),
    ],
)
def test_a_file_holds_options_and_the_command_line_comes_first(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    expected = TrainConfig.from_options("x", learning_rate=3e-3, max_steps=7, compile=True, whole_tokens=("<unk>",))
    assert parse(["--config", str(path)]) == expected
    assert parse(["--max-steps", "9", f"--config={path}"]).run.max_steps == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_stepz: 7", "max_stepz"),
        ("max_steps: many", "max_steps in .* is 'many': expected int"),
        ("max_steps: 1.5", "expected int"),
        ("compile: 1", "expected bool"),
        ("[1, 2]", "holds list"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read(str(path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("accumulate", "gradient_accumulation_steps"),
        ("clip", "max_grad_norm"),
        ("warmup", "warmup_ratio"),
        ("decay", "decay_ratio"),
    ],
)
def test_an_earlier_name_is_refused_with_the_present_one(old: str, new: str, tmp_path: Path) -> None:
    assert old not in OPTIONS and new in OPTIONS
    for arguments in ([f"--{old}", "1"], [f"--{old}=1"]):
        with pytest.raises(ConfigError, match=f"^--{old} was renamed: write --{new.replace('_', '-')}.$"):
            parse(["--data", "x", *arguments])
    path = tmp_path / "run.yaml"
    path.write_text(f"data: x\n{old}: 1\n")
    with pytest.raises(ConfigError, match=f"^{old} in .* was renamed: write {new}.$"):
        parse(["--config", str(path)])


def test_an_unknown_preset_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="quick, speedrun, sprint, wikitext-103, wikitext-2"):
        read("fast")


def test_the_talking_part_of_the_default_model_starts_from_its_preset() -> None:
    path = Path(__file__).parents[1] / "experiments" / "default_chat.yaml"
    assert parse(["--config", str(path)]).model.init_from == parse(["--config", "default"]).run.output


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_whole_run(name: str) -> None:
    config = parse(["--config", name])
    config.model.architecture(config.text.vocab_size)
    limits = (config.run.max_epochs, config.run.max_steps, config.run.max_minutes, config.run.max_cost)
    assert config.text.data and any(limits) and config.run.output.endswith(name)


def test_the_command_of_a_card_gives_the_run_again() -> None:
    config = TrainConfig.from_options("x", output="out", whole_tokens=("<unk>", "a b"), compile=True, max_minutes=2.5)
    words = shlex.split(command_line(config.changed()))
    assert parse(words[2:]) == TrainConfig.from_options(
        "x", whole_tokens=("<unk>", "a b"), compile=True, max_minutes=2.5
    )
