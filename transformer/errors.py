"""The package's exceptions, which the entry points (predict.py, train.py, cli/) catch and report."""

from transformer.credentials import redact


class TransformerError(Exception):
    """Base class of the package's exceptions. Messages are meant for users, and secrets in them are masked."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(text) if isinstance(text, str) else text for text in arguments))


class ConfigError(TransformerError, ValueError):
    """An option of a model, a training or sampling is invalid."""


class ContextLengthError(TransformerError, ValueError):
    """More tokens were given than the model has positions for."""


class CheckpointError(TransformerError):
    """A model directory (or an archive of one) is missing, incomplete or invalid."""


class CorpusError(TransformerError):
    """A text source is missing, empty or in an unsupported format."""


class WriteError(TransformerError):
    """A file cannot be written, as on a full disk, in a read-only folder, or if a folder has its name."""


class PublishError(TransformerError):
    """A model could not be published; the local files are unchanged."""


class PreflightError(TransformerError):
    """A check before the first training step failed."""


class ChatError(TransformerError):
    """A conversation cannot be rendered by the model's chat template."""


_TRAIN_EXTRA = ("accelerate", "datasets", "pyarrow", "tyro", "yaml")


def sentence(error: TransformerError | ModuleNotFoundError) -> str:
    """The message of an error for the command line; for a missing module, which extra to install.

    Raises:
        ModuleNotFoundError: the error itself, if the module is in no extra.
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
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
