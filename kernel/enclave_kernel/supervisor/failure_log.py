"""What the supervisor writes to its log of a failure that nobody foresaw."""

import logging
import traceback

__all__ = ["log_failure"]


def log_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """Log type and place of an error, not its message: that could quote a package or a key.

    Args:
        log: The module's logger.
        what: What failed, in a few words.
        error: As it was caught.
    """
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("%s: %s at %s", what, type(error).__name__, place)
