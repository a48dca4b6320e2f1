"""The samples of a model card: texts that the model continues and questions that it answers, with fixed seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress

from transformer.errors import ChatError
from transformer.inference import DEFAULT_SAMPLING, Generator, SamplingOptions, answer, messages_of

COUNT = 10
MAX_TOKENS = 100
_PROMPTS = (
    "The history of the city",
    "The species is found in",
    "In the summer of 1944,",
    "She was born in",
    "The book describes",
    "",
)
_QUESTIONS = (
    "Hello!",
    "What are you?",
    "What is a river?",
    "What is the Moon?",
    "Who was Julius Caesar?",
    "Where is Paris?",
    "Tell me about the piano.",
    "What is a horse?",
    "Who was Charles Darwin?",
    "What is mathematics?",
)


def samples_section(generator: Generator, settings: Mapping[str, float]) -> list[str]:
    """The paragraphs of the section: continued texts, and answers if the model has a chat template.

    Args:
        settings: the model's own sampling settings (`read_sampling`).
    """
    sampling = dataclasses.replace(DEFAULT_SAMPLING, max_tokens=MAX_TOKENS, **settings)  # type: ignore[arg-type]
    seeds = range(1, COUNT + 1)
    paragraphs = ["## Samples, not selected", f"{_in_words(sampling)}, seeds 1 to {COUNT}. The prompt is bold."]
    for seed in seeds:
        prompt = _PROMPTS[(seed - 1) % len(_PROMPTS)]
        text = "".join(generator.generate(prompt, dataclasses.replace(sampling, seed=seed)))
        paragraphs.append(_quote(f"**{prompt}**" if prompt else "*(no prompt)* ", text))
    with suppress(ChatError):  # no chat template, or none that takes a question alone
        answers = ["## Answers, not selected", "Same settings and seeds, each in a new conversation."]
        for seed in seeds:
            question = _QUESTIONS[(seed - 1) % len(_QUESTIONS)]
            text = "".join(answer(generator, messages_of(question), dataclasses.replace(sampling, seed=seed)))
            answers.append(_quote(f"**{question}** ", text.strip()))
        paragraphs += answers
    return paragraphs


def _in_words(sampling: SamplingOptions) -> str:
    return (
        f"Temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}, min-p {sampling.min_p}, "
        f"repetition penalty {sampling.repetition_penalty}, {sampling.max_tokens} tokens"
    )


def _quote(beginning: str, text: str) -> str:
    return "> " + (beginning + text.replace("<", "&lt;")).strip().replace("\n", "\n> ")
