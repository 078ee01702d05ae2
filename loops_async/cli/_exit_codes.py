"""The exit codes of the commands; click itself exits with 2 for wrong usage."""

from typing import Final

from loops_async import (
    AuthenticationError,
    ConfigurationError,
    JournalError,
    LoopsError,
)

FAILED: Final = 1  # Loops rejected an event, or the output cannot be written
CONFIGURATION: Final = 3
UNKNOWN: Final = 4
INTERRUPTED: Final = 130


class SendInterruptedError(LoopsError):
    """Ctrl-C ended a send before its response arrived."""


def exit_code(error: LoopsError) -> int:
    """Return the exit code of an error; an unknown outcome outweighs its cause."""
    if isinstance(error, SendInterruptedError):
        return INTERRUPTED
    if isinstance(error, JournalError):
        return CONFIGURATION
    if error.maybe_accepted or error.retryable:
        return UNKNOWN
    if isinstance(error, ConfigurationError | AuthenticationError):
        return CONFIGURATION
    return FAILED
