"""The sampling settings of a model: the `generation_config.json` of a model directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json
from transformer.inference.sampling import MODEL_SETTINGS, SamplingOptions

logger = logging.getLogger("transformer")

FILE = "generation_config.json"
# Settings that would change the text and are not supported, with the values at which they have no effect.
_NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
}


def read_sampling(directory: str | Path) -> dict[str, float]:
    """The sampling settings of the model, under their names in `SamplingOptions`; empty if there is no such file.

    `do_sample: false` is a temperature of 0. Settings that are not supported are logged.

    Raises:
        CheckpointError: if a setting is not a number, or out of its range.
    """
    path = Path(directory) / FILE
    fields = read_json(path) if path.exists() else {}
    settings = {name: _number(path, name, fields[name]) for name in MODEL_SETTINGS if fields.get(name) is not None}
    if fields.get("do_sample") is False:
        settings["temperature"] = 0
    try:
        SamplingOptions(**settings)  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error} Correct or remove it there.") from error
    if ignored := _not_supported(fields):
        logger.warning("%s says %s, which is not computed here.", FILE, ", ".join(ignored))
    return settings


def _number(path: Path, name: str, value: Any) -> float:
    if type(value) not in (int, float) or (name == "top_k" and value % 1 != 0):
        kind = "a whole number" if name == "top_k" else "a number"
        raise CheckpointError(f"{path}: {name} is {value!r:.80}, expected {kind}. Correct or remove it there.")
    return int(value) if name == "top_k" else value


def _not_supported(fields: Mapping[str, Any]) -> list[str]:
    return [
        name for name, neutral in _NOT_SUPPORTED.items() if fields.get(name) is not None and fields[name] not in neutral
    ]
