"""Milliseconds for one token at several positions of a text, in turns; 6 layers of width 512, GPT-2's vocabulary.

python -m benchmarks.positions
"""

import statistics
import time

import torch

from benchmarks.decoding import SIZES
from transformer.inference import select_backend
from transformer.inference.backend import InferenceBackend
from transformer.model import KVCache, ModelConfig, Transformer

POSITIONS = (10, 100, 500, 1000)
TURNS = 200


def milliseconds(backend: InferenceBackend, cache: KVCache, position: int) -> float:
    token = torch.tensor([5])
    times = []
    for _ in range(3):  # the first finds the cache full of another position's cache
        cache.lengths = [position]
        begin = time.perf_counter()
        backend.decode(token, cache)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.mean(times[1:])


def main() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("gpt2", context_length=1024, dropout=0.0, **SIZES)).eval()
    print(f"| | {' | '.join(f'at {position:,}' for position in POSITIONS)} | last ÷ first |")
    print("|---|" + "--:|" * (len(POSITIONS) + 1))
    for precision in ("int8", "bf16", "fp32"):
        backend = select_backend(model, precision)
        cache = backend.new_cache(1, 1024)
        backend.prefill(list(range(1, 1024)), cache, 0)
        turns = [[milliseconds(backend, cache, position) for position in POSITIONS] for _ in range(TURNS)]
        medians = [statistics.median(column) for column in zip(*turns, strict=True)]
        ratio = statistics.median(turn[-1] / turn[0] for turn in turns)
        print(f"| {precision} | {' | '.join(f'{median:.2f}' for median in medians)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
