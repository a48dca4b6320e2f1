"""The Cog predictor: the inputs of a request, and its metrics.

`cog build` reads the signature of `predict` without running it: bounds, defaults and descriptions have to be literals,
which `tools/cog_signature.py` checks.
"""

import logging
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

from cog import BasePredictor, ConcatenateIterator, Input, streaming

if TYPE_CHECKING:
    from transformer.inference import Generation

# The library is imported in functions, so that reading the signature does not import torch, which takes seconds.
logger = logging.getLogger("transformer")
EMBEDDED_WEIGHTS = pathlib.Path(__file__).parent / "weights"


class Predictor(BasePredictor):
    """A language model that continues a text."""

    def setup(self, weights: Optional[str] = None) -> None:
        """Load the model: `weights` (COG_WEIGHTS, a URL or path), else HF_MODEL_ID, else the embedded one."""
        from transformer.cog_folders import keep_removing_empty
        from transformer.credentials import guard_output
        from transformer.data.template_files import CHAT_HINT
        from transformer.device import pick_device
        from transformer.hub.checkpoint import load
        from transformer.hub.generation_config import read_sampling
        from transformer.hub.resolve import fetch
        from transformer.inference import serve

        guard_output()
        logging.basicConfig(format="%(message)s")
        logger.setLevel(logging.INFO)
        keep_removing_empty()
        source = weights or os.environ.get("HF_MODEL_ID") or EMBEDDED_WEIGHTS
        folder = fetch(source)
        self.model_sampling = read_sampling(folder)
        model, tokenizer = load(folder, pick_device(), keep_half=True)
        if tokenizer.chat_templates:
            logger.warning("%s the input chat or system_prompt answers it as a chat.", CHAT_HINT)
        self.generator = serve(model, tokenizer)

    @streaming
    def predict(
        self,
        prompt: str = Input(
            description="Text to continue, or the message of the user in a chat. Empty: a text without a prompt."
        ),
        max_tokens: int = Input(description="The maximum number of tokens to generate.", default=256, ge=1, le=4096),
        temperature: Optional[float] = Input(
            description="Randomness. 0: always the most likely token; 1: the distribution of the model; higher: more random. Blank: that of the model's generation_config.json, else 0.8.",  # noqa: E501
            default=None,
            ge=0,
            le=5,
        ),
        top_p: Optional[float] = Input(
            description="Sample from the most likely tokens with this total probability. 1: off. Blank: that of the model's generation_config.json, else 0.95.",  # noqa: E501
            default=None,
            ge=0,
            le=1,
        ),
        top_k: Optional[int] = Input(
            description="Sample from this many most likely tokens. 0: off. Blank: that of the model's generation_config.json, else 50.",  # noqa: E501
            default=None,
            ge=0,
        ),
        min_p: Optional[float] = Input(
            description="Minimum probability of a token, as a fraction of that of the most likely one. 0: off. Blank: that of the model's generation_config.json, else 0.",  # noqa: E501
            default=None,
            ge=0,
            le=1,
        ),
        repetition_penalty: Optional[float] = Input(
            description="Penalty of tokens that occurred before. 1: off. Blank: that of the model's generation_config.json, else 1.",  # noqa: E501
            default=None,
            ge=0.5,
            le=2,
        ),
        min_tokens: int = Input(
            description="The minimum number of tokens before the text may end.", default=0, ge=0, le=4096
        ),
        stop_sequences: str = Input(
            description='Strings, separated by commas, before which the text ends; spaces count, and a backslash with an n is a line end. Or a JSON list of strings, which may contain commas: ["a, b", "c"].',  # noqa: E501
            default="",
        ),
        seed: Optional[int] = Input(
            description="Seed of sampling: the same seed gives the same text. Blank: a random seed.",
            default=None,
            ge=0,
            le=9223372036854775807,
        ),
        system_prompt: str = Input(
            description="System prompt of a chat: instructions for the model. For models with a chat template.",
            default="",
        ),
        chat: bool = Input(
            description="Answer the prompt with the model's chat template, with or without a system prompt.",
            default=False,
        ),
        enable_thinking: Optional[bool] = Input(
            description="Whether the model thinks before it answers in a chat, for models that support both: the template option of this name. Blank: the default of the model.",  # noqa: E501
            default=None,
        ),
        template_options: str = Input(
            description='Variables of the chat template, as a JSON object: {"enable_thinking": false}. "chat_template" is the name of one of several templates.',  # noqa: E501
            default="",
        ),
    ) -> ConcatenateIterator[str]:
        """Continue the prompt, or answer it. The output is the generated text, in pieces, without the prompt."""
        from transformer.errors import ConfigError
        from transformer.inference import answer, combine_settings, messages_of, stops_of
        from transformer.inference.chat import merge_template_options, template_options_of

        given = {
            "temperature": None if temperature is None else float(temperature),
            "top_p": None if top_p is None else float(top_p),
            "top_k": None if top_k is None else _whole("top_k", top_k),
            "min_p": None if min_p is None else float(min_p),
            "repetition_penalty": None if repetition_penalty is None else float(repetition_penalty),
            "max_tokens": _whole("max_tokens", max_tokens),
            "min_tokens": _whole("min_tokens", min_tokens),
            "stop": stops_of(stop_sequences),
            "seed": None if seed is None else _whole("seed", seed),
        }
        user = {name: value for name, value in given.items() if value is not None}
        options, sources = combine_settings(self.model_sampling, user)
        logger.info(sources)
        variables = merge_template_options(template_options_of(template_options).items(), enable_thinking)
        # Not a generator function, so that invalid options raise an error at once, not with the first piece.
        if chat or system_prompt:
            return self._pieces(answer(self.generator, messages_of(prompt, system_prompt), options, variables))
        if variables:
            raise ConfigError("template_options and enable_thinking are for a chat: set chat too.")
        return self._pieces(self.generator.generate(prompt, options))

    def _pieces(self, generation: "Generation") -> Iterator[str]:
        """The pieces of the text; metrics are recorded even if the prediction is canceled or fails."""
        try:
            yield from generation
        finally:
            numbers = {
                "prompt_tokens": generation.prompt_tokens,
                "completion_tokens": generation.completion_tokens,
                "tokens_per_second": generation.tokens_per_second,
                "time_to_first_token_seconds": generation.seconds_to_first_token,
                "stop_reason": generation.stop_reason,
            }
            for name, value in numbers.items():
                if value is not None:
                    self.record_metric(name, value)


def _whole(name: str, value: float) -> int:
    """Convert a number to int: Cog passes an integer that JSON has as 3.0 as a float."""
    from transformer.errors import ConfigError

    if isinstance(value, float) and not value.is_integer():
        raise ConfigError(f"{name} must be a whole number, not {value}.")
    return int(value)
