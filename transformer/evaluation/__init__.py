"""Summed nats to perplexity per token, per word, and bits per byte."""

from transformer.evaluation.perplexity import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
