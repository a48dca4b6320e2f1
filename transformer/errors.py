"""The package's exceptions: one clear sentence each, caught at the faces (predict.py, train.py, cli.py)."""

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
