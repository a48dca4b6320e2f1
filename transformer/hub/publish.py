"""Publishing of a model directory on the Hub, in one commit."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars

from transformer.credentials import clean_token
from transformer.errors import CheckpointError, PublishError
from transformer.hub import checkpoint
from transformer.hub.client import ask
from transformer.hub.resolve import MODEL_FILES

logger = logging.getLogger("transformer")


def create_repository(repository: str, public: bool = False, token: str | None = None) -> None:
    """Create the repository, or check that it exists and can be written to; called before a training.

    Args:
        repository: `user/name`. public: whether a new repository is public; an existing one is not changed.
        token: None: the client's own, from HF_TOKEN or `hf auth login`.

    Raises:
        PublishError: if there is no login, the token is malformed, or the Hub refuses the request or does not answer.
    """
    token = _checked(token, repository)
    ask(
        lambda: HfApi(token=token).create_repo(repository, private=not public, exist_ok=True),
        f"{repository} cannot be written to",
        PublishError,
        token,
    )


def push(directory: str | Path, repository: str, public: bool = False, token: str | None = None) -> str:
    """Publish a model directory: its weights, configuration, tokenizer and card only. The arguments are those of
    `create_repository`.

    Files that were uploaded before a failure are not uploaded again. Without changes there is no new commit.

    Returns:
        The URL of the commit.

    Raises:
        CheckpointError: if the directory is not a complete model.
        PublishError: as `create_repository`; the directory is not changed.
    """
    directory = Path(directory)
    token = _checked(token, repository)
    checkpoint.load(directory)
    if not (directory / "README.md").exists():
        raise CheckpointError(
            f"{directory} has no README.md, the model card. Write one; for a model of train.py, "
            "`python -m transformer card` does."
        )
    create_repository(repository, public, token)
    disable_progress_bars()  # they would fill the log of a container
    again = f"python -m transformer push {directory} {repository}{' --public' if public else ''}"
    commit = ask(
        lambda: HfApi(token=token).upload_folder(
            repo_id=repository,
            folder_path=directory,
            allow_patterns=list(MODEL_FILES),
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],  # weights of an earlier model
            commit_message=f"A decoder-only Transformer: {directory.resolve().name}",
        ),
        f"{directory} is as it was, and `{again}` goes on, but the push to {repository} failed",
        PublishError,
        token,
    )
    logger.info("published %s", commit.commit_url)
    return str(commit.commit_url)


def _checked(token: str | None, repository: str) -> str | None:
    try:
        return clean_token(token)
    except ValueError as error:
        raise PublishError(f"{repository} cannot be written to: {error}") from None
