"""Train a model: `python train.py --data my.txt`, `cog train -i train_data=@my.txt`, or POST /trainings."""

import logging
import os
import sys
from typing import Any, Optional

from cog import BaseModel, Input, Path, Secret


class TrainingOutput(BaseModel):
    weights: Path


# Cog reads this signature without running it: bounds, defaults and choices have to be literals.
def train(
    train_data: Path = Input(
        description="Text to train on: .txt, or JSON lines or Parquet with text, prompt and completion, or messages"
    ),
    from_scratch: bool = Input(
        description="Train a new model and tokenizer, instead of fine-tuning the trained model", default=False
    ),
    preset: Optional[str] = Input(
        description="Architecture of a new model; default: modern",
        default=None,
        choices=["modern", "paper", "gpt2", "blog"],
    ),
    num_train_epochs: int = Input(description="Epochs", default=3, ge=1, le=1000),
    max_steps: Optional[int] = Input(description="Maximum number of steps", default=None, ge=1),
    train_batch_size: int = Input(description="Windows of tokens in a batch", default=8, ge=1, le=1024),
    gradient_accumulation_steps: int = Input(description="Batches per step", default=1, ge=1, le=1024),
    learning_rate: float = Input(description="Peak learning rate", default=0.0005, ge=0.0000001, le=1.0),
    warmup_ratio: float = Input(
        description="Fraction of the run in which the learning rate increases", default=0.05, ge=0.0, le=0.9
    ),
    context_length: int = Input(
        description="Tokens in a window; at most 1024 when fine-tuning the trained model",
        default=512,
        ge=8,
        le=8192,
    ),
    d_model: Optional[int] = Input(description="Width of a new model; default: 256", default=None, ge=16, le=4096),
    n_layers: Optional[int] = Input(description="Layers of a new model; default: 6", default=None, ge=1, le=48),
    n_heads: Optional[int] = Input(description="Attention heads of a new model; default: 4", default=None, ge=1, le=64),
    vocab_size: Optional[int] = Input(
        description="Vocabulary size of a new tokenizer; default: 8192", default=None, ge=300, le=65536
    ),
    seed: int = Input(
        description="Seed of the weights and of the order of the data", default=0, ge=0, le=9223372036854775807
    ),
    preflight: str = Input(
        description="Checks before the first step. stop: a failed check is an error; warn: a warning; off: no checks",
        default="stop",
        choices=["stop", "warn", "off"],
    ),
    hub_model_id: Optional[str] = Input(
        description="Publish the model on the Hugging Face Hub as user/name, in a private repository", default=None
    ),
    hub_token: Optional[Secret] = Input(description="A Hub token with write access, to publish with", default=None),
) -> TrainingOutput:
    """Train on `train_data`. The output is a tar of the model directory, for COG_WEIGHTS."""
    from transformer.cli import DEFAULT_MODEL
    from transformer.credentials import guard_output
    from transformer.errors import ConfigError
    from transformer.training.cog_training import data_source, train_to_archive
    from transformer.training.train_config import TrainConfig

    guard_output()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sizes = dict(preset=preset, d_model=d_model, n_layers=n_layers, n_heads=n_heads, vocab_size=vocab_size)
    # Cog passes an integer that JSON has as 3.0 as a float.
    given: dict[str, Any] = {
        name: value if isinstance(value, str) else int(value) for name, value in sizes.items() if value is not None
    }
    if given and not from_scratch:
        raise ConfigError(
            f"{', '.join(given)}: no effect without from_scratch, since the trained model keeps its architecture and "
            "tokenizer. Leave these inputs out, or set from_scratch to true."
        )
    if hub_token and not hub_model_id:
        raise ConfigError("hub_token has no effect without hub_model_id: nothing is published.")
    config = TrainConfig.from_options(
        data=data_source(train_data),
        init_from=None if from_scratch else DEFAULT_MODEL,
        max_epochs=num_train_epochs,
        max_steps=None if max_steps is None else int(max_steps),
        batch_size=int(train_batch_size),
        gradient_accumulation_steps=int(gradient_accumulation_steps),
        learning_rate=learning_rate,
        warmup_ratio=warmup_ratio,
        context_length=int(context_length),
        seed=int(seed),
        preflight=preflight,
        push_to=hub_model_id or None,
        **given,
    )
    archive = train_to_archive(config, hub_token.get_secret_value() if hub_token else None)
    return TrainingOutput(weights=Path(archive))


def main(arguments: list[str] | None = None) -> int:
    """The command line; the options are those of `TrainConfig`."""
    from transformer.cli.train_command import run

    return run(sys.argv[1:] if arguments is None else arguments, "train.py")


if __name__ == "__main__":
    status = main()
    if "RANK" in os.environ:  # one of several processes: gloo's threads can abort the interpreter at its exit
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
