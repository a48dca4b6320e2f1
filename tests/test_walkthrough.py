"""The walk through the model prints what the model computes."""

import re

import torch

from experiments.walkthrough import TEXT, WEIGHTS, walk
from transformer.hub.checkpoint import load


def test_the_walk_shows_the_tensors_of_the_model() -> None:
    report = walk(TEXT)
    model, tokenizer = load(WEIGHTS)
    rows = re.findall(r"^   +(\d+) +(\d+)  '(.*)'$", report, re.MULTILINE)
    assert "".join(text for _, _, text in rows).removeprefix("<|endoftext|>") == TEXT
    ids = [int(one) for _, one, _ in rows]
    attention = report.split("3. Attention")[1].split("4. Residual")[0].splitlines()[1:-1]
    weights = torch.tensor([[float(weight) for weight in row.split()] for row in attention])
    assert weights.shape == (len(ids), len(ids))
    assert (weights.sum(dim=1) - 1).abs().max() < 0.05 and (weights.triu(1) == 0).all()
    with torch.no_grad():
        best = int(model(torch.tensor([ids]))[0, -1].argmax())
    first = re.search(r"%  (.*)$", report.split("5. Logits")[1], re.MULTILINE)
    assert first is not None and first[1] == repr(tokenizer.decode([best], skip_special=False))
