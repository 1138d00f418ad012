"""The root of every error this project raises; packages refine it where they raise it."""

__all__ = ["EnclaveError", "ProtocolError"]


class EnclaveError(Exception):
    """Any failure this project detects itself.

    The message is one line: what was found, what was expected, what to do next. It never holds
    a key, a plaintext or a line of a package.
    """


class ProtocolError(EnclaveError):
    """The peer of a stream broke the protocol: the stream is closed and not resumed."""
