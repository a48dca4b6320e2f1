"""`python -m transformer.cli.build_kernel [FOLDER]`: compile the C backend ahead, so that prediction needs no compiler.

By default the libraries are written beside the source, where the backend finds them and a wheel includes them. It finds
them in another folder if the environment variable NATIVE_KERNELS is its path.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from transformer.cli.exit_status import exit_status
from transformer.inference.native.compiled_kernel import AHEAD, build_ahead


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 after an error, whose message is on standard error."""
    parser = ArgumentParser(
        "python -m transformer.cli.build_kernel", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=AHEAD, help="default: %(default)s")
    options = parser.parse_args(arguments)

    def build() -> None:
        for path in build_ahead(options.folder):
            print(path)

    return exit_status(build, "build_kernel")


if __name__ == "__main__":
    sys.exit(main())
