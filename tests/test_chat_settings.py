"""What a model's directory says of its chat templates, and what a caller says to them."""

import json
from pathlib import Path

import pytest
import transformers
from models import tiny_model_directory

from transformer.cli import main
from transformer.data.chat_template import chat_tokens
from transformer.data.tokenizer import Tokenizer
from transformer.errors import ChatError

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


def test_enable_thinking_reaches_the_template(tmp_path: Path) -> None:
    folder = with_template(tmp_path, THINKING)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    found = []
    for given in (None, True, False):
        named = {} if given is None else {"enable_thinking": given}
        found.append(chat_tokens(ours, TALK, given))
        assert found[-1] == theirs.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False, **named)
    assert found[0] == found[1] != found[2]


def test_a_conversation_without_messages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="no message"):
        chat_tokens(Tokenizer.load(with_template(tmp_path, THINKING)), [])


def test_where_enable_thinking_would_do_nothing_it_is_an_error(tmp_path: Path, capsys) -> None:
    folder = str(with_template(tmp_path, "{{ messages[0].content }}"))
    with pytest.raises(ChatError, match="does not know enable_thinking"):
        chat_tokens(Tokenizer.load(folder), TALK, False)
    assert main(["predict", "x", "--model", folder, "--no-enable-thinking"]) == 1
    assert "give --chat too" in capsys.readouterr().err


def test_several_templates_without_a_default_are_named(tmp_path: Path, capsys) -> None:
    several = [{"name": "tool_use", "template": "TOOLS"}, {"name": "rag", "template": "RAG"}]
    folder = with_template(tmp_path, several)
    with pytest.raises(
        ChatError, match=r"the chat templates rag, tool_use, and none called default.*chat_template\.jinja"
    ):
        chat_tokens(Tokenizer.load(folder), TALK)
    assert main(["predict", "x", "--model", str(folder), "--chat"]) == 1
    assert "rag, tool_use" in capsys.readouterr().err
    Tokenizer.load(folder).save(folder)  # they are kept
    assert Tokenizer.load(folder).chat_template_names == ["rag", "tool_use"]
    with_template(tmp_path, [*several, {"name": "default", "template": THINKING}])
    assert Tokenizer.load(folder).chat_template == THINKING
