"""Errors of the local cloud as AWS clients know them: a code, a message, an HTTP status."""

__all__ = ["AwsError"]


class AwsError(Exception):
    """An answer other than success; `code` is AWS's exception name."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
