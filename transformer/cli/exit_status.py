"""Error messages and exit statuses of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable

from transformer.errors import TransformerError, sentence
from transformer.training.interrupt import Interrupted


def exit_status(command: Callable[[], int | None], program: str, interrupted: str = "") -> int:
    """Run a command, with errors as messages on standard error.

    Args:
        program: prefix of the messages.
        interrupted: message after Ctrl-C.

    Returns:
        The status of the command (None: 0), 1 after an error, or 128 + the signal that stopped it.
    """
    try:
        return command() or 0
    except Interrupted as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 128 + error.signal
    except (TransformerError, ModuleNotFoundError) as error:
        print(f"{program}: {sentence(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}" if interrupted else "", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of standard output has exited
        sys.stderr.close()
    except OSError as error:  # such as a full disk, or a name that is too long
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
    except MemoryError:
        print(f"{program}: there is not enough memory for this model and these options.", file=sys.stderr)
    return 1
