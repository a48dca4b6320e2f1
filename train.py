"""Train a model: `python train.py --data my.txt`, `cog train -i train_data=@my.txt`, or POST /trainings."""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path as LocalPath
from typing import Optional

from cog import BaseModel, Input, Path, Secret


class TrainingOutput(BaseModel):
    weights: Path


# Cog reads this signature without running it: every bound, default and choice has to be written out here.
def train(
    train_data: Path = Input(
        description='Text to learn: a .txt file, or JSON lines of {"text"} or {"prompt", "completion"}'
    ),
    from_scratch: bool = Input(
        description="Start from random weights and a new tokenizer, instead of from the trained model", default=False
    ),
    preset: str = Input(
        description="Architecture of a model from scratch",
        default="modern",
        choices=["modern", "paper", "gpt2", "blog"],
    ),
    num_train_epochs: int = Input(description="Passes over the text", default=3, ge=1, le=1000),
    max_steps: Optional[int] = Input(description="End after this many steps, if that is sooner", default=None, ge=1),
    train_batch_size: int = Input(description="Windows of tokens in a batch", default=8, ge=1, le=1024),
    gradient_accumulation_steps: int = Input(description="Batches in a step", default=1, ge=1, le=1024),
    learning_rate: float = Input(description="The highest learning rate", default=0.0005, ge=0.0000001, le=1.0),
    warmup_ratio: float = Input(
        description="Part of the run in which the learning rate rises", default=0.05, ge=0.0, le=0.9
    ),
    context_length: int = Input(description="Tokens in a window", default=512, ge=8, le=8192),
    d_model: int = Input(description="Width of a model from scratch", default=256, ge=16, le=4096),
    n_layers: int = Input(description="Layers of a model from scratch", default=6, ge=1, le=48),
    n_heads: int = Input(description="Attention heads of a model from scratch", default=4, ge=1, le=64),
    vocab_size: int = Input(
        description="Tokens of the tokenizer of a model from scratch", default=8192, ge=300, le=65536
    ),
    seed: int = Input(description="Seed of the weights and of the order of the text", default=0, ge=0),
    preflight: str = Input(
        description="Checks before the first step: if one fails, stop the training, or warn and go on; off: no checks",
        default="stop",
        choices=["stop", "warn", "off"],
    ),
    hub_model_id: Optional[str] = Input(
        description="Publish the model on the Hugging Face Hub as user/name, private", default=None
    ),
    hub_token: Optional[Secret] = Input(description="A token of the Hub that may write, to publish with", default=None),
) -> TrainingOutput:
    """Train on `train_data`; the weights are a tar of the model directory, as COG_WEIGHTS takes it."""
    from transformer.cli import DEFAULT_MODEL
    from transformer.hub.source import pack
    from transformer.training.config import TrainConfig
    from transformer.training.run import train as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = TrainConfig(
        data=str(train_data),
        output=tempfile.mkdtemp(prefix="training-"),
        init_from=None if from_scratch else DEFAULT_MODEL,
        preset=preset,
        # Cog hands on a whole number as it was written, 3 or 3.0.
        max_epochs=num_train_epochs,
        max_steps=None if max_steps is None else int(max_steps),
        batch_size=int(train_batch_size),
        accumulate=int(gradient_accumulation_steps),
        learning_rate=learning_rate,
        warmup=warmup_ratio,
        context_length=int(context_length),
        d_model=int(d_model),
        n_layers=int(n_layers),
        n_heads=int(n_heads),
        vocab_size=int(vocab_size),
        seed=int(seed),
        preflight=preflight,  # type: ignore[arg-type]  # one of the choices: Cog has checked it
        push_to=hub_model_id or None,
    )
    try:
        run(config, hub_token.get_secret_value() if hub_token else None)
        archive = pack(config.output, LocalPath(tempfile.mkdtemp(prefix="trained-"), "weights.tar"))
    finally:
        shutil.rmtree(config.output)
    return TrainingOutput(weights=Path(archive))


def main(arguments: list[str] | None = None) -> int:
    """The command line; the options are those of `TrainConfig`."""
    from transformer.errors import TransformerError
    from transformer.training.interrupt import Interrupted
    from transformer.training.options import parse
    from transformer.training.run import train as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(parse(sys.argv[1:] if arguments is None else arguments))
    except Interrupted as stop:
        print(f"train.py: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except TransformerError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: stopped at once; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    status = main()
    if "RANK" in os.environ:  # one of several processes: gloo's threads can abort an interpreter that is taken down
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
