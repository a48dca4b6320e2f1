"""POST /trainings with the defaults of a request, once for each ordinary text: `python tests/twenty_trainings.py`.

Prints a line for each text and the count of those that succeeded; the exit status is 1 unless all did.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from cog_server import cog_server  # noqa: E402
from ordinary_texts import ORDINARY_TEXTS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, help="end each training after this many steps; default: three epochs")
    parser.add_argument("--from-scratch", action="store_true")
    options = parser.parse_args()
    inputs = {"max_steps": options.max_steps} if options.max_steps else {}
    inputs |= {"from_scratch": True} if options.from_scratch else {}
    succeeded = 0
    with cog_server({"OMP_NUM_THREADS": "2"}, mode="train") as server:
        server.wait_for("READY")
        for name, text in ORDINARY_TEXTS.items():
            url = f"data:application/octet-stream;base64,{base64.b64encode(text.encode()).decode()}"
            begin = time.monotonic()
            request = {"input": {"train_data": url, **inputs}}
            answer = server.http.post("/trainings", json=request, timeout=3600).json()
            succeeded += answer["status"] == "succeeded"
            said = answer.get("error", "")
            print(f"{name:22} {answer['status']:10} {time.monotonic() - begin:6.1f} s  {said}", flush=True)  # noqa: T201
            server.wait_for("READY")
    print(f"{succeeded} of {len(ORDINARY_TEXTS)} succeeded")  # noqa: T201
    return 0 if succeeded == len(ORDINARY_TEXTS) else 1


if __name__ == "__main__":
    sys.exit(main())
