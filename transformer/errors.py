"""The package's exceptions: one clear sentence each, caught at the entry points (predict.py, train.py, cli/)."""

from transformer.credentials import redact


class TransformerError(Exception):
    """Base of every error this package raises on purpose; its message is meant for a person, and holds no secret."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(text) if isinstance(text, str) else text for text in arguments))


class ConfigError(TransformerError, ValueError):
    """A model, training or sampling option has a value that cannot work."""


class ContextLengthError(TransformerError, ValueError):
    """More tokens were given than the model has positions for."""


class CheckpointError(TransformerError):
    """A model directory (or an archive of one) is missing, incomplete or not understood."""


class CorpusError(TransformerError):
    """A text source is missing, empty or not in a format that can be read."""


class WriteError(TransformerError):
    """A file cannot be written: there is no room, the folder is read-only, or a folder has its name."""


class PublishError(TransformerError):
    """A model could not be published; it is still where it was."""


class PreflightError(TransformerError):
    """A check before the first step found what would make the run worthless."""


class ChatError(TransformerError):
    """A conversation cannot be written as the model's chat template has it."""


_TRAIN_EXTRA = ("accelerate", "datasets", "pyarrow", "tyro", "yaml")


def sentence(error: TransformerError | ModuleNotFoundError) -> str:
    """What the command line says of an error; of a module that is missing, the extra that has it.

    Raises:
        ModuleNotFoundError: the error itself, if the module belongs to no extra.
    """
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    name = (error.name or "").partition(".")[0]
    if name not in _TRAIN_EXTRA:
        raise error
    return (
        f"this needs {name}, which is not installed: pip install 'decoder-only-transformer[train]', or '.[train]' in a "
        "checkout."
    )


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
