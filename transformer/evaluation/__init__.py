"""Summed nats to perplexity per token, per word, and bits per byte."""

from transformer.evaluation.detokenize import DETOKENIZERS
from transformer.evaluation.perplexity import Evaluation, Scores, evaluate

__all__ = ["DETOKENIZERS", "Evaluation", "Scores", "evaluate"]
