"""From a fresh process to the first token, as a ratio to `import torch` alone, in turns so that noise hits both.

python benchmarks/cold_start.py [runs]

Then where the time goes: `setup()` by itself, and the imports that take the longest.
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


def seconds_of_setup() -> float:
    """Opening and packing the embedded model, as the Cog predictor does, once torch is imported."""
    code = "import time, torch, predict; p = predict.Predictor(); t = time.time(); p.setup(); print(time.time() - t)"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))


def slowest_imports(count: int = 8) -> list[tuple[str, float]]:
    """The packages that a prediction imports, with the seconds of all that each pulls in first."""
    command = [sys.executable, "-X", "importtime", "-m", "transformer", "predict", "--max-tokens", "1", PROMPT]
    errors = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    rows = [line.split("|") for line in errors.splitlines() if line.startswith("import time:") and "[us]" not in line]
    times = {name.strip(): int(cumulative) / 1e6 for _, cumulative, name in rows}
    packages = {name: seconds for name, seconds in times.items() if "." not in name or name.startswith("transformer.")}
    return sorted(packages.items(), key=lambda row: -row[1])[:count]


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds_to_first_token()  # fills the disk cache
    pairs = [(seconds_to_import_torch(), seconds_to_first_token()) for _ in range(runs)]
    torch_alone, first_token = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(token / alone for alone, token in pairs)
    setup = statistics.median(seconds_of_setup() for _ in range(runs))
    print(f"import torch {torch_alone:.2f} s · first token {first_token:.2f} s · ratio {ratio:.2f} (medians of {runs})")
    print(f"setup() {setup:.2f} s, {setup / torch_alone:.2f} of import torch\n\n| import | seconds |\n|---|--:|")
    for name, seconds in slowest_imports():
        print(f"| `{name}` | {seconds:.3f} |")


if __name__ == "__main__":
    main()
