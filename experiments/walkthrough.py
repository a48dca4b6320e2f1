"""`python -m experiments.walkthrough [TEXT]`: one forward pass of the default model, tensor by tensor.

Read it beside transformer/model/: every tensor is printed where the module that computes it is done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from transformer.hub.checkpoint import load
from transformer.model.attention import attention_weights, causal_mask

TEXT = "The capital of France is"
WEIGHTS = Path(__file__).parents[1] / "weights"
LAYER, HEAD = 0, 0


def walk(text: str) -> str:
    """The report on a text: tokens, embeddings, one head's weights, the residual stream, the logits."""
    model, tokenizer = load(WEIGHTS)
    ids = tokenizer.encode_prompt(text)
    names = [tokenizer.decode([one], skip_special=False) for one in ids]
    lines = [f"1. Tokens: {len(ids)} of a vocabulary of {model.config.vocab_size:,}"]
    lines += [f"   {place:3}  {one:6}  {name!r}" for place, (one, name) in enumerate(zip(ids, names, strict=True))]

    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _, inputs, output: seen.update({name: output.detach()}))

    keep("embeddings", model.token_embedding)
    for number, layer in enumerate(model.layers):
        keep(f"layer {number}", layer)
    tokens = torch.tensor([ids])  # (B, T) = (1, T)
    projections: list[tuple[Tensor, Tensor, Tensor]] = []
    attention = model.layers[LAYER].attention
    attention.register_forward_pre_hook(lambda module, inputs: projections.append(module.project(*inputs[:2])))
    with torch.no_grad():
        logits = model(tokens)  # (B, T, vocabulary)

    x = seen["embeddings"]
    norm = float(x.norm(dim=-1).mean())
    lines += ["", f"2. Embeddings: {tuple(x.shape)} (batch, tokens, d_model); norm {norm:.3f} on average"]

    query, key, _ = projections[0]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # each key head serves several query heads
    weights = attention_weights(query, key, causal_mask(len(ids)))[0, HEAD]  # (T, T)
    lines += ["", f"3. Attention weights of layer {LAYER}, head {HEAD}: row = query, column = key; each row sums to 1"]
    lines += ["   " + " ".join(f"{float(weight):5.2f}" for weight in row) for row in weights]

    lines += ["", "4. Residual stream: norm at the last token after each layer"]
    lines += [f"   layer {n}  {float(seen[f'layer {n}'][0, -1].norm()):8.3f}" for n in range(len(model.layers))]

    probabilities = logits[0, -1].softmax(dim=-1)
    lines += ["", f"5. Logits: {tuple(logits.shape)}; the likeliest next tokens after {names[-1]!r}"]
    best = probabilities.topk(5)
    for probability, one in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        lines.append(f"   {probability:6.1%}  {tokenizer.decode([one], skip_special=False)!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(walk(sys.argv[1] if len(sys.argv) > 1 else TEXT))
