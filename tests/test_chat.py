"""Conversations: a model's own chat template gives what transformers makes of it, and a hostile one does no harm."""

import json
import resource
from pathlib import Path

import pytest
import torch
import transformers
from models import tiny_model, tiny_model_directory, tiny_tokenizer

from transformer.cli import main
from transformer.data.chat_template import chat_tokens, render
from transformer.data.conversation import CHAT_TEMPLATE, conversation
from transformer.data.tokenizer import Tokenizer
from transformer.errors import ChatError, CheckpointError
from transformer.hub import checkpoint
from transformer.hub.resolve import fetch, pack
from transformer.inference import Generator, SamplingOptions, answer, messages_of
from transformer.training.distributed import Engine
from transformer.training.run_components import prepare_tokenizer
from transformer.training.train_config import TrainConfig

# Short ones of the shapes that are in use: what each does differently stands in it.
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\nTools: ' + tools | tojson + '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not message.content is none %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {{- ('' if loop.index0 == ns.last else ' ') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
    {% generation %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
    {% endgeneration %}
{% else %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
MISTRAL = """{% macro turn(name, text) %}[{{ name | upper }}] {{ text | tojson(indent=1) }} [/]{% endmacro %}
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}
{{ turn('inst', message.content) }}{{ {'a': message.role} | tojson }}{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "smollm2": SMOLLM2, "zephyr": ZEPHYR, "mistral": MISTRAL}
TALK = [
    {"role": "user", "content": " How <tall> & 'old' is it?\n"},
    {"role": "assistant", "content": "300 metres — 東京 🦞"},
    {"role": "user", "content": "And the river?"},
]
GREEDY = SamplingOptions(max_tokens=12, temperature=0, repetition_penalty=1)
REFUSED = ("mistral", True)  # its template has no system prompt


def with_template(path: Path, template: object, **config: object) -> Path:
    tiny_model_directory(path)
    fields = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**fields, "chat_template": template, **config}))
    return path


@pytest.mark.parametrize(
    ("name", "system"), [(name, system) for name in TEMPLATES for system in (False, True) if (name, system) != REFUSED]
)
def test_a_template_gives_what_transformers_makes_of_it(name: str, system: bool, tmp_path: Path) -> None:
    directory = with_template(tmp_path, TEMPLATES[name])
    messages = [{"role": "system", "content": " Be brief. "}, *TALK] if system else TALK
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.load(directory)
    assert ours.chat_template is not None
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(ours.chat_template, messages, ours.special_tokens) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert chat_tokens(ours, messages) == ids, "special tokens are there twice or not at all"


def test_what_a_template_refuses_is_its_own_sentence(tmp_path: Path) -> None:
    ours = Tokenizer.load(with_template(tmp_path, TEMPLATES[REFUSED[0]]))
    with pytest.raises(ChatError, match=r"chat template says: Roles must alternate"):
        chat_tokens(ours, [{"role": "system", "content": " Be brief. "}, *TALK])


def test_a_template_survives_load_save_and_pack(tmp_path: Path) -> None:
    """One in a file of its own comes before that in the settings; of several the default one counts."""
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": LLAMA3}]
    bos = {"content": "<|pad|>", "lstrip": False, "__type": "AddedToken"}
    directory = with_template(tmp_path / "a", several, bos_token=bos, model_max_length=77, auto_map={"A": "b"})
    model, tokenizer = checkpoint.load(directory)
    assert tokenizer.chat_template == LLAMA3
    checkpoint.save(model, tokenizer, tmp_path / "b")
    (tmp_path / "b" / "chat_template.jinja").write_text(CHATML)
    packed = fetch(pack(tmp_path / "b", tmp_path / "b.tar"))
    assert Tokenizer.load(packed).chat_template == CHATML
    theirs = transformers.AutoTokenizer.from_pretrained(packed)
    assert theirs.chat_template == CHATML and theirs.bos_token == "<|pad|>" and theirs.model_max_length == 77
    checkpoint.save(*checkpoint.load(packed), tmp_path / "b")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "b").chat_template == CHATML
    assert "auto_map" not in (tmp_path / "b" / "tokenizer_config.json").read_text()


def test_a_model_without_a_template_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tiny_model_directory(tmp_path)
    for option in (["--system", "Be brief."], ["--chat"]):
        assert main(["predict", "--model", str(directory), *option, "Hello"]) == 1
        error = capsys.readouterr().err
        assert "has no chat template" in error and error.count("\n") == 1


def test_the_plain_conversations_of_training_have_a_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    messages = [{"role": "system", "content": " Be brief.\n"}, *TALK]
    prompt = "".join(text for text, _ in conversation(messages)) + "\nAssistant:"
    assert chat_tokens(tokenizer, messages) == tokenizer.encode_prompt(prompt)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|endoftext|>" + prompt


def test_an_answer_is_the_text_after_the_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = with_template(tmp_path, SMOLLM2)
    model, tokenizer = checkpoint.load(directory)
    messages = messages_of("The river", "Be brief.")
    generation = answer(Generator(model, tokenizer), messages, GREEDY)
    text = "".join(generation)
    ids = chat_tokens(tokenizer, messages)
    assert generation.prompt_tokens == len(ids)
    assert text == "".join(Generator(model, tokenizer).generate(ids, GREEDY))
    command = ["--model", str(directory), "--max-tokens", "12", "--temperature", "0", "--repetition-penalty", "1"]
    assert main(["predict", *command, "--system", "Be brief.", "The river"]) == 0
    assert capsys.readouterr().out == text + "\n", "an answer stands without its question"


def test_chat_remembers_the_conversation(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    directory = with_template(tmp_path, CHATML)
    lines = iter(["The river", "The tower", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    greedy = ["--max-tokens", "12", "--temperature", "0", "--repetition-penalty", "1"]
    assert main(["chat", "--model", str(directory), "--system", "Be brief.", *greedy]) == 0
    generator = Generator(*checkpoint.load(directory))
    messages = messages_of("The river", "Be brief.")
    first = "".join(answer(generator, messages, GREEDY))
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "The tower"}]
    second = "".join(answer(generator, messages, GREEDY))
    assert capsys.readouterr().out.split("Model: ")[1:] == [first + "\n", second + "\n"]


def test_every_end_of_text_that_the_model_names_ends_a_text(tmp_path: Path) -> None:
    """As Qwen and Llama 3 do: one token ends the text, others a turn."""
    directory = tiny_model_directory(tmp_path / "a")
    ids = Tokenizer.load(directory).encode_prompt("The river")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    options = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 12}
    whole = theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
    end = max(set(whole), key=whole.index)  # the one that comes first as late as can be
    for name, value in (("generation_config.json", [0, end]), ("config.json", end)):
        fields = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**fields, "eos_token_id": value}))
        model, tokenizer = checkpoint.load(directory)
        assert tokenizer.end_ids == {0, end}
        generation = Generator(model, tokenizer).generate(ids, GREEDY)
        assert "".join(generation) == tokenizer.decode(whole[: whole.index(end)])
        assert (generation.completion_tokens, generation.stop_reason) == (whole.index(end), "end_of_text")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
        out = theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        assert out == whole[: whole.index(end) + 1]
        checkpoint.save(model, tokenizer, tmp_path / "again")
        assert transformers.GenerationConfig.from_pretrained(tmp_path / "again").eos_token_id == [0, end]
        (directory / "generation_config.json").unlink(missing_ok=True)


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(CheckpointError, match="the prompt has token 300, and the model knows 290"):
        Generator(tiny_model(vocab_size=290), tiny_tokenizer()).generate([2, 300])


BOMBS = {
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "memory or time"),
    "long": ("{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}", "writes more than"),
    "wide": ("{{ 'a' | center(10**10) }}", "limit of memory"),
    "doubling": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "limit of memory",
    ),
    "deep": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "nested": ("{{ " + "(" * 10**5 + ")" * 10**5 + " }}", "chat template"),
    "outside": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "globals": ("{{ raise_exception.__globals__.os }}", "unsafe"),
    "wrong": ("{% if %}", "Expected an expression"),
    "changing": ("{{ messages.append(1) }}", "unsafe|not safely callable"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_is_one_sentence_and_soon(name: str) -> None:
    template, sentence = BOMBS[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(ChatError, match=sentence) as refusal:
        render(template, TALK, {})
    assert "\n" not in str(refusal.value) and resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 4


def test_a_training_on_conversations_gives_their_template_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    (tmp_path / "text.txt").write_text("The river rises in the hills.\n")
    for name, template in (("talks.jsonl", CHAT_TEMPLATE), ("text.txt", None)):
        config = TrainConfig.from_options(
            data=str(tmp_path / name), output=str(tmp_path / f"{name}-run"), vocab_size=300
        )
        tokenizer = prepare_tokenizer(config, Engine("cpu"), None)
        assert tokenizer.chat_template == template
        assert Tokenizer.load(tmp_path / f"{name}-run" / "checkpoints").chat_template == template
