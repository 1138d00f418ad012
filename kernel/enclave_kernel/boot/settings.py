"""What an image was built as: one small file in it, measured like everything else."""

from pathlib import Path
from typing import Final

import msgspec

from enclave_protocol.errors import EnclaveError

__all__ = ["SETTINGS_FILE", "BootSettings", "SettingsError", "read_settings"]

SETTINGS_FILE: Final = Path("/etc/enclave/image.json")
_MAX_BYTES: Final = 4096


class SettingsError(EnclaveError):
    """The image's settings cannot be read: it was built wrongly."""


class BootSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to boot.

    Attributes:
        name: Of the image, with its flavour; a development image says so.
        development: Packages marked for development may be opened, and `software_nsm` is used.
        software_nsm: Development only: the program (with arguments) that stands in for the NSM
            where the machine has none.
    """

    name: str
    development: bool = False
    software_nsm: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.software_nsm and not self.development:
            raise ValueError("a production image has no software NSM")


def read_settings(path: Path = SETTINGS_FILE) -> BootSettings:
    """Read an image's settings.

    Raises:
        SettingsError: They are not there, or not what they must be.
    """
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=BootSettings)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise SettingsError(f"{path} of this image cannot be used: {error}") from error
