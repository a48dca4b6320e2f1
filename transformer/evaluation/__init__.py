"""Summed nats to perplexity per token, per word, and bits per byte."""

from transformer.evaluation.agreement import Agreement, agreement
from transformer.evaluation.detokenize import DETOKENIZERS
from transformer.evaluation.perplexity import Evaluation, Scores, evaluate

__all__ = ["DETOKENIZERS", "Agreement", "Evaluation", "Scores", "agreement", "evaluate"]
