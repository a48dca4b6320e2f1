"""The original's "perplexity 3" and the honest number, of the same weights on WikiText-2's validation text.

    python -m experiments.story.perplexity3 --data wikitext-2 --tokenizer openai-community/gpt2

A small model with GPT-2's tokenizer is trained for some steps the original's way, on windows whose padding is counted,
and measured both ways; with --model a trained model is measured instead. Writes perplexity3.md beside this file.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from transformer.data.tokenizer import Tokenizer
from transformer.evaluation import evaluate
from transformer.hub import checkpoint
from transformer.hub.resolve import fetch_tokenizer
from transformer.hub.text_sources import documents
from transformer.legacy.padded_evaluation import BLOCK, evaluate_padded, padded_lines, padding_shares
from transformer.model import ModelConfig, Transformer

ROWS, RATE = 8, 4e-3  # windows in a step, and the highest learning rate


def texts(data: str, split: str) -> list[str]:
    return [document.text for document in documents(data, split=split)]


def train(data: str, tokenizer: Tokenizer, steps: int, seed: int) -> Transformer:
    """A small model that learned from random windows over padded lines, every target counted."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    config = ModelConfig.preset(
        "modern", vocab_size=tokenizer.vocab_size, context_length=BLOCK, d_model=64, n_layers=2, n_heads=4
    )
    model = Transformer(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    lines = list(padded_lines(texts(data, "train")[:200], tokenizer))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / steps)
        chosen = []
        for ids in chance.choices(lines, k=ROWS):
            start = chance.randrange(len(ids) - BLOCK)
            chosen.append(ids[start : start + BLOCK + 1])
        windows = torch.stack(chosen)
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True, help="GPT-2's")
    parser.add_argument("--model", default="weights", help="a trained model that is measured too")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=80, help="measure each so manieth line")
    parser.add_argument("--stride", type=int, default=2, help="tokens from one measured window to the next")
    options = parser.parse_args()

    tokenizer, validation = Tokenizer.load(fetch_tokenizer(options.tokenizer)), texts(options.data, "validation")
    lengths = np.array([len(ids) - BLOCK for ids in padded_lines(validation, tokenizer)])
    shares = padding_shares(lengths)
    begin = time.perf_counter()
    small = train(options.data, tokenizer, options.steps, seed=0)
    seconds = time.perf_counter() - begin
    rows = []
    for name, (model, own) in {
        f"small, GPT-2's tokenizer, {options.steps} steps with padding counted": (small, tokenizer),
        f"`{options.model}`, its own tokenizer, never saw padding": checkpoint.load(options.model),
    }.items():
        padded = evaluate_padded(model, own, validation, stride=options.stride, every=options.every)
        packed = evaluate(model, own, validation[:3], context=BLOCK)
        rows.append(
            f"| {name} | {padded.share:.1%} | **{padded.reported_perplexity:.2f}** | {padded.if_padding_is_free:.2f} | "
            f"{padded.real_perplexity:.1f} | **{packed.token_perplexity:.1f}** |"
        )
    weighted = float((shares * lengths).sum() / lengths.sum())
    page = f"""# "Perplexity 3", settled

The original put {BLOCK} paddings before every line that is not empty, moved a window of {BLOCK} over it token by token,
and counted every target; padding, beginning and end had one id. WikiText-2's validation text has {len(lengths):,} such
lines of GPT-2's tokens, {lengths.mean():.0f} on average and {np.median(lengths):.0f} in the median, ends included.

**{shares.mean():.1%} of a line's targets are padding** (mean over the lines; {np.median(shares):.1%} in the median).
Long lines have many windows without padding: over all windows together it is {weighted:.1%}.

    ppl_reported = exp((1 - s) · L), so ppl_real = ppl_reported ^ (1 / (1 - s))

A reported 3 is {3 ** (1 / (1 - shares.mean())):.0f} per real token at s = {shares.mean():.3f}, and
{3 ** (1 / (1 - weighted)):.1f} if all windows weigh the same.

| weights | s | reported, padding counted | exp((1 - s) L) | per real token, same windows | honest: packed, no padding |
|---|---|---|---|---|---|
{chr(10).join(rows)}

The first two columns after s agree where padding was learned; weights that never saw padding pay for it. The last
column reads the articles as they are, in windows of {BLOCK} (stride {BLOCK // 2}), the first 3 of them. The other
columns, s included, are of every {options.every}th line with a window every {options.stride} tokens, which is why s is
not quite that of all lines above. The small model was trained in {seconds:.0f} s.

```
python -m experiments.story.perplexity3 --data WIKITEXT-2 --tokenizer GPT2 \\
    --steps {options.steps} --every {options.every} --stride {options.stride}
```
"""
    Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
