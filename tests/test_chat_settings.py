"""What a model's directory says of its chat templates, and what a caller says to them."""

import json
from pathlib import Path

import pytest
import transformers
from models import tiny_model_directory

from transformer.cli import main
from transformer.data.chat_template import chat_tokens
from transformer.data.tokenizer import Tokenizer
from transformer.errors import ChatError, CheckpointError, ConfigError
from transformer.hub import checkpoint
from transformer.hub.resolve import fetch, pack
from transformer.inference import Generator, SamplingOptions, answer
from transformer.inference.chat import template_options_of

TALK = [{"role": "user", "content": "Hello"}]
THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    "{% if enable_thinking is defined and enable_thinking is false %} <think></think>{% endif %}"
)


def with_template(folder: Path, template: object) -> Path:
    path = tiny_model_directory(folder) / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template}
    path.write_text(json.dumps(fields), encoding="utf-8")
    return folder


OPTIONS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if not today is defined %}{% set today = 'no day' %}{% endif %}{{ today }}{{ bos_token }}"
    "{% macro f() %}{{ depth | default(1) }}{% endmacro %}{{ f() }}"
)


def same_prompt(folder: Path, options: dict) -> list[int]:
    """The prompt of transformers, which ours has to equal."""
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    expected = theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False, **options)
    assert chat_tokens(ours, TALK, options) == expected
    return expected


def test_enable_thinking_reaches_the_template(tmp_path: Path) -> None:
    folder = with_template(tmp_path, THINKING)
    found = [same_prompt(folder, named) for named in ({}, {"enable_thinking": True}, {"enable_thinking": False})]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "options",
    [
        {"today": "27 Nov 2026", "depth": 1.5},
        {"depth": [1, {"a": None}], "bos_token": "<x>"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_template_options_reach_the_template(options: dict, tmp_path: Path) -> None:
    folder = with_template(tmp_path, OPTIONS)
    assert same_prompt(folder, options) != same_prompt(folder, {})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"enable_thinkin": False}, "does not read enable_thinkin: .* special tokens: depth, today, tools"),
        ({"f": 1, "m": 2}, "does not read f, m"),  # names of its own, which no option reaches
        ({"add_generation_prompt": False}, "add_generation_prompt is set by the program"),
        ({"tools": "weather"}, "tools must be a JSON list of objects"),
        ({"chat_template": "rag"}, "no chat template called 'rag': it has default"),
        ({"chat_template": ["rag"]}, "no chat template called"),
    ],
)
def test_template_options_without_effect_are_errors(options: dict, sentence: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_template(tmp_path, OPTIONS))
    with pytest.raises(ChatError, match=sentence):
        chat_tokens(tokenizer, TALK, options)


def test_template_options_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_template(tmp_path, "{{ messages[0].content }}{{ said is string }}{{ said }}{{ more }}")
    greedy = ["--max-tokens", "8", "--temperature", "0", "--repetition-penalty", "1", "--model", str(folder)]
    chatting = ["predict", "Hello", "--chat", *greedy]
    given = {"said=false": False, 'said="false"': "false", "said=a=b": "a=b", "said=": "", "said=[1, 2]": [1, 2]}
    for text, value in given.items():
        assert main([*chatting, "--template-option", text, "--template-option", "more=x"]) == 0
        options = SamplingOptions(max_tokens=8, temperature=0)
        generator = Generator(*checkpoint.load(folder), "auto")
        expected = "".join(answer(generator, TALK, options, {"said": value, "more": "x"}))
        assert capsys.readouterr().out == expected + "\n"
    wrong = {
        "--template-option said": "is NAME=VALUE",
        "--template-option =1": "is NAME=VALUE",
        "--template-option said=1 --template-option said=2": "said is given twice",
        "--template-option enable_thinking=1 --enable-thinking": "enable_thinking is given twice",
        "--template-option other=1": "does not read other",
    }
    for text, sentence in wrong.items():
        assert main([*chatting, *text.split()]) == 1
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert main(["predict", "Hello", *greedy, "--template-option", "said=1"]) == 1
    assert "give --chat too" in capsys.readouterr().err


def test_template_options_are_a_json_object() -> None:
    assert template_options_of(" ") == {} and template_options_of('{"a": [1]}') == {"a": [1]}
    for text in ("[1]", "a=b", "{", "[" * 10**5):
        with pytest.raises(ConfigError, match="template_options must be a JSON object"):
            template_options_of(text)


def test_one_of_several_templates_is_chosen(tmp_path: Path) -> None:
    several = [
        {"name": "default", "template": THINKING},
        {"name": "tool_use", "template": "{{ tools | length }} tools {{ messages[0].content }}"},
        {"name": "rag", "template": "{{ documents[0].text }}: {{ messages[0].content }}"},
    ]
    folder = with_template(tmp_path / "list", several)
    (tmp_path / "files" / "additional_chat_templates").mkdir(parents=True)
    files = with_template(tmp_path / "files", "not used, since there are files")
    for one in several:
        path = "chat_template" if one["name"] == "default" else f"additional_chat_templates/{one['name']}"
        (files / f"{path}.jinja").write_text(one["template"], encoding="utf-8")
    tools, documents = {"tools": [{"name": "f"}]}, {"documents": [{"text": "a", "title": "b"}]}
    chosen = [{}, {"chat_template": "rag", **documents}, tools, {"chat_template": "default", "enable_thinking": False}]
    for options in chosen:
        assert same_prompt(folder, options) == same_prompt(files, options)
    packed = fetch(pack(files, tmp_path / "files.tar"))
    assert Tokenizer.load(packed).chat_templates == {one["name"]: one["template"] for one in several}
    Tokenizer.load(packed).save(packed)
    assert Tokenizer.load(packed).chat_templates == Tokenizer.load(folder).chat_templates
    same_prompt(packed, chosen[1])
    (files / "additional_chat_templates" / "rag.jinja").write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(CheckpointError, match=r"rag.jinja has 1,048,577 bytes"):
        Tokenizer.load(files)


def test_a_conversation_without_messages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="no message"):
        chat_tokens(Tokenizer.load(with_template(tmp_path, THINKING)), [])


def test_where_enable_thinking_would_do_nothing_it_is_an_error(tmp_path: Path, capsys) -> None:
    folder = str(with_template(tmp_path, "{{ messages[0].content }}"))
    assert main(["predict", "x", "--model", folder, "--chat", "--no-enable-thinking"]) == 1
    assert "does not read enable_thinking" in capsys.readouterr().err
    assert main(["predict", "x", "--model", folder, "--no-enable-thinking"]) == 1
    assert "give --chat too" in capsys.readouterr().err


def test_several_templates_without_a_default_are_named(tmp_path: Path, capsys) -> None:
    several = [{"name": "tool_use", "template": "TOOLS"}, {"name": "rag", "template": "RAG"}]
    folder = with_template(tmp_path, several)
    with pytest.raises(
        ChatError, match=r"the chat templates rag, tool_use, and none called default.*chat_template=rag"
    ):
        chat_tokens(Tokenizer.load(folder), TALK)
    assert main(["predict", "x", "--model", str(folder), "--chat"]) == 1
    assert "rag, tool_use" in capsys.readouterr().err
    assert main(["predict", "x", "--model", str(folder), "--chat", "--template-option", "chat_template=rag"]) == 0
    Tokenizer.load(folder).save(folder)  # they are kept
    assert sorted(Tokenizer.load(folder).chat_templates) == ["rag", "tool_use"]
    with_template(tmp_path, [*several, {"name": "default", "template": THINKING}])
    assert Tokenizer.load(folder).chat_template == THINKING
