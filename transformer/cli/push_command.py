"""`push`: publish a model on the Hub."""

from __future__ import annotations

import argparse

from transformer.cli.shared_options import Commands, add_command


def add_push(commands: Commands) -> None:
    parser = add_command(
        commands, "push", push, "publish a model on the Hub, as the user of HF_TOKEN or `hf auth login`"
    )
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("repository", help="user/name")
    parser.add_argument("--public", action="store_true", help="make the repository public if it is new")


def push(options: argparse.Namespace) -> None:
    """Publish a model directory, and print its address."""
    from transformer.hub.publish import push

    print(push(options.model, options.repository, options.public))
