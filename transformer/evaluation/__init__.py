"""Evaluation: perplexity per token and per word, bits per byte, and agreement of two models."""

from transformer.evaluation.agreement import Agreement, agreement
from transformer.evaluation.detokenize import DETOKENIZERS
from transformer.evaluation.perplexity import Evaluation, Scores, evaluate

__all__ = ["DETOKENIZERS", "Agreement", "Evaluation", "Scores", "agreement", "evaluate"]
