"""What can go wrong while an image is built or read."""

from enclave_protocol.errors import EnclaveError

__all__ = ["ImageError", "ImageRuleError", "LockError", "ToolError"]


class ImageError(EnclaveError):
    """The image cannot be built or read; the text says what to do."""


class LockError(ImageError):
    """A lock file is malformed, or what was fetched is not what it says."""


class ToolError(ImageError):
    """A program that the builder needs is missing or failed."""


class ImageRuleError(ImageError):
    """The root file system holds something that no image of ours may hold."""
