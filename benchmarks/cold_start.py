"""From a fresh process to the first token, as a ratio to `import torch` alone, in turns so that noise hits both.

python benchmarks/cold_start.py [runs]
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The history of the city"


def seconds_to_output(arguments: list[str], n_bytes: int) -> float:
    """From starting Python with these arguments until so many bytes are on its standard output."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(n_bytes)
        seconds = time.perf_counter() - start
        process.stdout.read()
    return seconds


def seconds_to_import_torch() -> float:
    return seconds_to_output(["-c", "import torch; print()"], 1)


def seconds_to_first_token() -> float:
    """Until a character beyond the prompt is there."""
    command = ["-m", "transformer", "predict", "--max-tokens", "8", "--seed", "0", PROMPT]
    return seconds_to_output(command, len(PROMPT) + 1)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds_to_first_token()  # fills the disk cache
    pairs = [(seconds_to_import_torch(), seconds_to_first_token()) for _ in range(runs)]
    torch_alone, first_token = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(token / alone for alone, token in pairs)
    print(f"import torch {torch_alone:.2f} s · first token {first_token:.2f} s · ratio {ratio:.2f} (medians of {runs})")


if __name__ == "__main__":
    main()
