"""`python -m transformer <command>`: the library on the command line.

Imports that only one command needs stand within it: a prediction should not wait for the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from transformer import __version__
from transformer.console import never_fail_on_characters, typed
from transformer.credentials import guard_output
from transformer.errors import ConfigError, TransformerError

DEFAULT_MODEL = str(Path(__file__).resolve().parents[2] / "weights")
DEFAULT_PROMPT = "The history of the city"
_MOST_OUTPUTS = 4096  # texts that are generated together
_DTYPES = ("auto", "fp32", "bf16", "int8")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 1 after an error, whose one sentence is on standard error."""
    guard_output()
    never_fail_on_characters()
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (preflight, train):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    if getattr(options, "model", "") is None:
        parser.error(
            "this installation has no default model, which is part of a checkout. Give --model a folder, a tar, a URL "
            "or a Hub id, such as --model user/name."
        )
    try:
        return options.command(options) or 0
    except TransformerError as error:
        print(f"transformer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a folder in place of a file, a name that is too long
        where = f"{error.filename}: " if error.filename else ""
        print(f"transformer: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("transformer: there is not enough memory for this model and these options.", file=sys.stderr)
        return 1


def predict(options: argparse.Namespace) -> None:
    """Print the prompt and its continuation, or in a chat the answer, as it is generated; or several texts."""
    generator = _generator(options)
    if options.chat or options.system:
        from transformer.inference import answer, messages_of

        if options.num_outputs > 1:
            raise ConfigError("--num-outputs is for texts that continue a prompt: a chat has one answer.")
        messages = messages_of(options.prompt, options.system)
        generation = answer(generator, messages, _sampling(options), options.enable_thinking)
    elif options.enable_thinking is not None:
        raise ConfigError("--enable-thinking is for a chat: give --chat too.")
    elif options.num_outputs > 1:
        completions = generator.generate_batch([options.prompt] * options.num_outputs, _sampling(options))
        for number, completion in enumerate(completions, 1):
            print(f"--- {number} ---\n{options.prompt}{completion.text}")
        return
    else:
        generation = generator.generate(options.prompt, _sampling(options))
        sys.stdout.write(options.prompt)
    for piece in generation:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if sys.stderr.isatty():
        print(
            f"[{generation.prompt_tokens} + {generation.completion_tokens} tokens, "
            f"{generation.tokens_per_second:.0f} tokens/s, ended by {generation.stop_reason}]",
            file=sys.stderr,
        )


def chat(options: argparse.Namespace) -> None:
    """A conversation, if the model has a chat template; otherwise the original project's: each line is continued."""
    from transformer.inference import answer

    generator, sampling = _generator(options), _sampling(options)
    talks = generator.tokenizer.chat_template is not None or bool(generator.tokenizer.chat_template_names)
    if not talks and options.enable_thinking is not None:
        raise ConfigError("--enable-thinking is for models with a chat template, which this one lacks.")
    messages = [{"role": "system", "content": options.system}] if options.system else []
    print(f"Type {'what you say' if talks else 'the beginning of a text'}. An empty line or Ctrl-D ends.")
    while True:
        try:
            prompt = input("\nYou: ")
        except EOFError:
            print()
            return
        if not prompt:
            return
        sys.stdout.write("Model: ")
        messages.append({"role": "user", "content": prompt})
        said = ""
        pieces = (
            answer(generator, messages, sampling, options.enable_thinking)
            if talks
            else generator.generate(prompt, sampling)
        )
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            said += piece
        messages.append({"role": "assistant", "content": said})
        print()


def evaluate(options: argparse.Namespace) -> None:
    """Perplexity per token, per word, and bits per byte."""
    from transformer.data.corpus import documents
    from transformer.evaluation import DETOKENIZERS
    from transformer.evaluation import evaluate as score
    from transformer.hub.checkpoint import load
    from transformer.hub.resolve import fetch
    from transformer.inference import Generator

    generator = Generator(*load(fetch(options.model)), options.dtype)
    model, tokenizer = generator.model, generator.tokenizer
    texts = documents(options.data, options.data_config, options.split, options.text_column)
    detokenize = DETOKENIZERS[options.detokenize] if options.detokenize else None
    e = score(model, tokenizer, texts, options.context, options.stride, detokenize=detokenize)
    if options.json:
        units = ("token_perplexity", "word_perplexity", "harness_word_perplexity", "byte_perplexity", "bits_per_byte")
        measured = {name: getattr(e, name) for name in units} | dataclasses.asdict(e)
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}  # JSON has no inf
        print(json.dumps({**finite, "detokenize": options.detokenize}, indent=2))
        return
    of_what = ", of the text before it was detokenised" if detokenize else ""
    print(f"perplexity per token  {e.token_perplexity:.3f}   ({e.tokens:,} tokens of this model's tokenizer)")
    print(f"perplexity per word   {e.word_perplexity:.3f}   ({e.words:,} words between white space{of_what})")
    if detokenize:
        words = f"{e.harness_words:,} words as lm-evaluation-harness counts: also what is empty at an end of a page"
        print(f"                      {e.harness_word_perplexity:.3f}   ({words})")
    print(f"bits per byte         {e.bits_per_byte:.4f}   ({e.n_bytes:,} bytes of UTF-8{of_what})")
    print(f"nats                  {e.nats:.1f}   ({e.documents:,} documents, context {e.context}, stride {e.stride})")


def card(options: argparse.Namespace) -> None:
    """Measure a model on validation texts and write its card."""
    from transformer.data.corpus import documents
    from transformer.evaluation import Scores, agreement
    from transformer.evaluation import evaluate as score
    from transformer.hub.checkpoint import load
    from transformer.inference import select_backend
    from transformer.reporting.loss_curve import draw_curve
    from transformer.reporting.model_card import write_card

    model, tokenizer = load(options.model)
    draw_curve(Path(options.model))
    # int8 is what `--dtype auto` serves on most servers.
    rounded = select_backend(model, "int8")
    models: dict[str, Scores] = {"": model, " (int8)": rounded}
    evaluations, remarks = [], []
    for named in options.evaluate:
        name, _, source = named.partition("=")
        for suffix, scored in models.items():
            evaluations.append((name + suffix, score(scored, tokenizer, documents(source, split="validation"))))
        texts = (document.text for document in documents(source, split="validation"))
        both = agreement(model, rounded, tokenizer, texts)
        share = f"{both.same / both.places:.1%} of {both.places:,} places"
        remarks.append(f"In int8 the likeliest next token is the one it is in fp32 at {share} ({name}).")
    write_card(options.model, evaluations, options.data, options.license, remarks)


def show(options: argparse.Namespace) -> None:
    """Write a page that shows what the model does with a text."""
    from transformer.files import whole_file
    from transformer.hub.checkpoint import load
    from transformer.hub.resolve import fetch
    from transformer.reporting import attention_page, tokens_page

    make = {"attention": attention_page, "tokens": tokens_page}[options.what]
    name = "the default model" if options.model == DEFAULT_MODEL else Path(options.model).name
    output = options.output or f"{options.what}.html"
    page = make(*load(fetch(options.model)), options.text, name)
    with whole_file(output) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    print(output)


def train(options: argparse.Namespace) -> int:
    """Train a model; the options are those of `train.py`."""
    from transformer.cli.train_command import run

    return run(options.rest, "python -m transformer train")


def preflight(options: argparse.Namespace) -> int:
    """Check a training without starting it; nothing is left behind but the tokens of its text in the cache."""
    import logging
    import tempfile

    from transformer.preflight import preflight as check
    from transformer.training.distributed import Engine
    from transformer.training.options import parse
    from transformer.training.run_components import build

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = parse(options.rest, "python -m transformer preflight")
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        config = config.with_options(output=folder, trackers=())
        engine = Engine(config.run.device, config.run.parallel)
        parts = build(config, engine)
        report = check(parts, config, engine)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if options.json else report.table())
    return 1 if report.failed else 0


def push(options: argparse.Namespace) -> None:
    """Publish a model directory on the Hub."""
    from transformer.hub.publish import push

    print(push(options.model, options.repository, options.public))


def conversations(options: argparse.Namespace) -> None:
    """Write conversations about the articles of a data set, as JSON lines to fine-tune on."""
    from transformer.data.conversation_dataset import conversation_rows, titled_articles
    from transformer.files import whole_file

    articles = titled_articles(options.data, options.data_config)
    rows = conversation_rows(articles, options.text_share, seed=options.seed)
    with whole_file(options.output) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    talks = sum("messages" in row for row in rows)
    print(f"{options.output}: {talks:,} conversations, {len(rows) - talks:,} articles")


def import_original(options: argparse.Namespace) -> None:
    """A checkpoint of the project that this one grew from, as a model directory of the blog preset."""
    from transformer.data.tokenizer import Tokenizer
    from transformer.hub.checkpoint import save
    from transformer.legacy.checkpoint_import import load_original

    model = load_original(options.checkpoint, options.heads, options.pad_token_id)
    save(model, Tokenizer.load(options.tokenizer) if options.tokenizer else None, options.output)
    print(f"{options.output}: {model.parameter_count():,} parameters, {model.config}")
    if not options.tokenizer:
        print("It has no tokenizer yet, which generating text needs: give --tokenizer the one it was trained with.")


def _generator(options: argparse.Namespace):  # type: ignore[no-untyped-def]  # its type would import torch
    from transformer.hub.checkpoint import load
    from transformer.hub.resolve import fetch
    from transformer.inference import Generator

    return Generator(*load(fetch(options.model)), options.dtype)


def _sampling(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from transformer.inference import SamplingOptions

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_tokens", "seed")
    return SamplingOptions(stop=tuple(options.stop), **{name: getattr(options, name) for name in names})


def _how_many(text: str) -> int:
    if not 1 <= (number := int(text)) <= _MOST_OUTPUTS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MOST_OUTPUTS:,}, not {text}")
    return number


def _place(text: str) -> str:
    """A path, a URL or a name on the Hub."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected the name of a file or a folder, not {text!r}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m transformer", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    default_model = DEFAULT_MODEL if Path(DEFAULT_MODEL).is_dir() else None  # an installed package has none
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, help: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        sub = commands.add_parser(name, help=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(command=function)
        return sub

    predicting = command("predict", predict, "continue a prompt")
    predicting.add_argument("prompt", nargs="?", type=typed, default=DEFAULT_PROMPT, help="the beginning of a text")
    predicting.add_argument("--chat", action="store_true", help="answer the prompt by the model's chat template")
    predicting.add_argument(
        "--num-outputs", type=_how_many, default=1, help="number of samples, generated in one batch"
    )
    chatting = command("chat", chat, "answer what you type, or continue it line by line")
    for sub in (predicting, chatting):
        sub.add_argument(
            "--model", type=_place, default=default_model, help="folder, tar, URL, or Hub id (user/name@revision)"
        )
        sub.add_argument(
            "--dtype", choices=_DTYPES, default="auto", help="of the matrix products; auto: the fastest here"
        )
        sub.add_argument("--max-tokens", type=int, default=200, help="at most this many new tokens")
        sub.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
        sub.add_argument("--top-k", type=int, default=50, help="only the k likeliest tokens; 0: off")
        sub.add_argument("--top-p", type=float, default=0.95, help="only the likeliest tokens of this probability")
        sub.add_argument("--min-p", type=float, default=0.0, help="only tokens this much as likely as the likeliest")
        sub.add_argument("--repetition-penalty", type=float, default=1.1, help="1: off")
        sub.add_argument("--min-tokens", type=int, default=0, help="the text does not end before")
        sub.add_argument(
            "--stop", action="append", type=typed, default=[], help="end before this string; may be given again"
        )
        sub.add_argument("--seed", type=int, help="the same seed gives the same text")
        sub.add_argument("--system", type=typed, default="", help="what a chat begins with: how the model is to answer")
        sub.add_argument(
            "--enable-thinking",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="whether it thinks before it answers in a chat, for models that can do both",
        )

    evaluating = command("evaluate", evaluate, "perplexity per token, per word, and bits per byte")
    evaluating.add_argument(
        "--model", type=_place, default=default_model, help="folder, tar, URL, or Hub id (user/name@revision)"
    )
    evaluating.add_argument("--dtype", choices=_DTYPES, default="fp32", help="of the matrix products")
    evaluating.add_argument("--data", "--dataset", type=_place, required=True, help="file, folder, or Hub data set")
    evaluating.add_argument("--data-config", "--dataset-config", help="configuration of a Hub data set")
    evaluating.add_argument("--text-column", help="column of the rows that holds the text; default: those known")
    evaluating.add_argument("--split", default="validation", help="split; a single file has 'train' alone")
    evaluating.add_argument("--context", type=int, help="tokens in a window; default: the model's context")
    evaluating.add_argument("--stride", type=int, help="tokens by which it moves on; default: half the context")
    evaluating.add_argument(
        "--detokenize",
        choices=("wikitext",),
        help="undo this data set's tokenisation for the model; words and bytes stay those of the text as it was. With "
        "--stride equal to the context these are the numbers of lm-evaluation-harness",
    )
    evaluating.add_argument("--json", action="store_true", help="print everything measured as one JSON object")

    showing = command("show", show, "write a page on which you look inside the model")
    showing.add_argument(
        "what", choices=("attention", "tokens"), help="what each head looks at, or how much each token surprises"
    )
    showing.add_argument("text", type=typed, help="the text that it reads")
    showing.add_argument(
        "--model", type=_place, default=default_model, help="folder, tar, URL, or Hub id (user/name@revision)"
    )
    showing.add_argument("--output", type=_place, help="the page; default: attention.html or tokens.html")

    describing = command("card", card, "measure a trained model and write its model card")
    describing.add_argument("model", help="folder of a model that train.py made")
    describing.add_argument("--data", required=True, help="what it was trained on, in words")
    describing.add_argument("--license", help="licence of that data, as the Hub names it: cc-by-sa-4.0")
    describing.add_argument(
        "--evaluate", action="append", default=[], metavar="NAME=DATA", help="score the validation split of DATA"
    )

    training = commands.add_parser("train", add_help=False, allow_abbrev=False, help="train a model")
    training.set_defaults(command=train)

    checking = commands.add_parser(
        "preflight", add_help=False, allow_abbrev=False, help="check a training before it costs anything"
    )
    checking.set_defaults(command=preflight)
    checking.add_argument("--json", action="store_true")

    pushing = command("push", push, "publish a model on the Hub, as the user of HF_TOKEN or `hf auth login`")
    pushing.add_argument("model", help="folder of a model")
    pushing.add_argument("repository", help="user/name")
    pushing.add_argument("--public", action="store_true", help="a new repository is for everyone to see")

    talking = command("conversations", conversations, "make conversations about the articles of a data set")
    talking.add_argument("--data", "--dataset", type=_place, required=True, help="rows with a title and a text")
    talking.add_argument("--data-config", "--dataset-config", help="configuration of a Hub data set")
    talking.add_argument("--output", type=_place, required=True, help="the JSON lines to write")
    talking.add_argument("--text-share", type=float, default=0.1, help="part of the articles that stand among them")
    talking.add_argument("--seed", type=int, default=0, help="of the questions and their order")

    importing = command("import-original", import_original, "import a .pt checkpoint of the original project")
    importing.add_argument("checkpoint", help="the .pt file")
    importing.add_argument("output", help="folder for the model directory")
    importing.add_argument("--tokenizer", help="tokenizer.json, folder or Hub id, such as openai-community/gpt2")
    importing.add_argument(
        "--heads", choices=("average", "sum"), help="how its heads are joined; default: known by its tensors' names"
    )
    importing.add_argument("--pad-token-id", type=int, help="its padding id; default: known by vocabulary size")
    return parser
