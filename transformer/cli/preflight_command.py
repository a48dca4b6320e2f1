"""`preflight`: check a training without starting it."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile

from transformer.cli.shared_options import Commands, add_training_command
from transformer.errors import ConfigError

PROGRAM = "python -m transformer preflight"


def add_preflight(commands: Commands) -> None:
    parser = add_training_command(commands, "preflight", preflight, "check a training before it costs anything")
    parser.add_argument("--json", action="store_true")


def preflight(options: argparse.Namespace) -> int:
    """Print the checks; only the token cache stays on disk. Returns 1 if a check failed."""
    from transformer.preflight import preflight as check
    from transformer.training.distributed import DistributedEngine
    from transformer.training.options import parse
    from transformer.training.run_components import build

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = parse(options.rest, PROGRAM)
    for name in ("preflight", "resume", "restart"):
        if name in config.changed():
            raise ConfigError(f"--{name} has no effect on this command, which checks and does not train. Leave it out.")
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        config = config.with_options(output=folder, trackers=())
        engine = DistributedEngine(config.run.device, config.run.parallel)
        report = check(build(config, engine), config, engine)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if options.json else report.table())
    return 1 if report.failed else 0
