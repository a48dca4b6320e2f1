"""The turns of the original's story as small trainings, the mistakes planted and measured.

python -m experiments.story --data wikitext-2
python -m experiments.story --only heads

Runs that are finished are kept in experiments/story/cache and not made again; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from datetime import date
from functools import partial
from pathlib import Path

import torch

from experiments.story.runs import WEIGHTS, Run, Settings, Text, kept
from experiments.story.tables import fill_in, picture, table
from experiments.story.variants import TURNS, VARIANTS
from transformer.device import describe
from transformer.training.memory_limits import keep_freed_memory

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.story", description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="WikiText-2, as train.py takes it; default: from the Hub")
    parser.add_argument("--only", action="append", choices=TURNS, help="this turn; may be given again")
    parser.add_argument("--steps", type=int, default=500, help="of each run; about a minute on one core")
    parser.add_argument("--held-out", type=int, default=200, help="lines that every run is measured on")
    parser.add_argument("--threads", type=int, default=1, help="the numbers depend on it in their last digits")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results, pictures and cache")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    data, data_config = (options.data, None) if options.data else ("Salesforce/wikitext", "wikitext-2-v1")
    settings = Settings(data, data_config, options.output / "cache", steps=options.steps, held_out=options.held_out)
    turns = {name: TURNS[name] for name in options.only or TURNS}
    keep_freed_memory()
    wanted = {run for turn in turns.values() for run in (turn.control, *turn.others)}
    names = [name for name in VARIANTS if name in wanted]
    text = functools.cache(lambda: Text(settings))  # not read where everything is finished

    def build(name: str) -> Run:
        print(f"{name}: {VARIANTS[name].what}", flush=True)
        return Run.build(name, VARIANTS[name], settings, text())

    def train(name: str) -> dict:
        return build(name).train(text())

    def check(name: str) -> dict:
        return build(name).preflight().to_json()

    # One file for the training, which takes a minute, and one for preflight, which may be asked again.
    trained = {name: kept(settings.cache / f"{name}.json", partial(train, name)) for name in names}
    checked = {name: kept(settings.cache / f"{name}.preflight.json", partial(check, name)) for name in names}
    results = {name: trained[name] | {"preflight": checked[name]} for name in names}
    return write(results, options.output, settings)


def write(results: dict, output: Path, settings: Settings) -> int:
    """results.json, table.md, the pictures, and the tables within README.md where there is one."""
    facts = {
        "date": date.today().isoformat(),
        "machine": describe(torch.device("cpu")),
        "data": Path(settings.data).name,
        "tokenizer": f"of {Path(WEIGHTS).name}/",
        "steps": settings.steps,
        "held_out_lines": settings.held_out,
    }
    (output / "results.json").write_text(
        json.dumps({"settings": facts, "runs": results}, indent=1) + "\n", encoding="utf-8"
    )
    (output / "table.md").write_text(table(results), encoding="utf-8")
    (output / "plots").mkdir(exist_ok=True)
    for name, turn in TURNS.items():
        if {turn.control, *turn.others} <= results.keys():
            (output / "plots" / f"{name}.svg").write_text(picture(name, turn, results), encoding="utf-8")
    if (output / "README.md").exists():
        fill_in(output / "README.md", "table", table(results))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
