"""The curve of a speedrun: validation loss against minutes, from the metrics of the run.

python -m benchmarks.speedrun output/speedrun
"""

import json
import math
import sys
from pathlib import Path


def main(folder: str) -> None:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first = next(line["training_seconds"] for line in lines if "loss" in line)
    print(f"The first step, in which the step is compiled, took {first:.0f} s; training time has it.")
    print("| step | training minutes | all minutes | tokens | nats per token | perplexity per token | bits per byte |")
    print("|---|---|---|---|---|---|---|")
    for line in (line for line in lines if "validation_loss" in line):
        loss = line["validation_loss"]
        print(
            f"| {line['step']:,} | {line['training_seconds'] / 60:.1f} | {line['seconds'] / 60:.1f} | "
            f"{line['tokens']:,} | {loss:.4f} | {math.exp(loss):.2f} | {line['bits_per_byte']:.4f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
