"""Which PCRs the enclave must have: chosen with `enclave up --expect-pcr0`, and remembered.

The file is in the durable directory, so that it outlives gateways, enclaves and boots.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from enclave_parent_gateway.errors import GatewayError, NothingExpectedError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.whole_file import replace_file
from enclave_protocol.attestation_document import PCR_BYTES
from enclave_protocol.eif import EifError, measure_eif

__all__ = [
    "EXPECTABLE",
    "ExpectedPcrsError",
    "expected_pcrs",
    "forget_pcrs",
    "parse_expectation",
    "remember_pcrs",
    "remembered_pcrs",
]

EXPECTABLE = (0, 1, 2, 3, 8)
"""PCR4 names the instance, and the others are zero (FACTS, "Attestation document")."""
_MAX_FILE_BYTES = 64 * 1024
_MAX_VALUES = 64
_Hex = Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{2 * PCR_BYTES}}}\Z")]


class ExpectedPcrsError(GatewayError):
    """A value that was to be expected is none, or the file they are remembered in is damaged."""


class _Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file; indices in decimal, values in lower-case hex."""

    pcrs: dict[str, Annotated[tuple[_Hex, ...], msgspec.Meta(min_length=1, max_length=_MAX_VALUES)]]


def parse_expectation(index: int, text: str) -> bytes:
    """Return the value that a command line asks for.

    Args:
        index: Of the PCR.
        text: 96 hexadecimal digits, or for PCR0, 1, 2 and 8 the path of an EIF, which is measured.

    Raises:
        ExpectedPcrsError: It is neither.
    """
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) == PCR_BYTES:
        if not any(value):
            raise ExpectedPcrsError(
                f"PCR{index} of zeroes is that of an enclave in debug mode, which is never trusted"
            )
        return value
    path = Path(text)
    if index == 3 or not path.is_file():
        file = "" if index == 3 else ", or an EIF file that exists"
        raise ExpectedPcrsError(
            f"{text!r} is not a value of PCR{index}: give {2 * PCR_BYTES} hexadecimal digits{file}"
        )
    try:
        with path.open("rb") as stream:
            measured = measure_eif(stream)
    except (OSError, EifError) as error:
        raise ExpectedPcrsError(f"{path} cannot be measured: {error}") from error
    if index not in measured:
        raise ExpectedPcrsError(f"{path} is not signed, so it has no PCR{index}")
    return measured[index]


def _file(paths: EnclavePaths) -> Path:
    return paths.durable / "expected_pcrs.json"


def remember_pcrs(paths: EnclavePaths, pcrs: Mapping[int, frozenset[bytes]]) -> None:
    """Expect these from now on, and nothing of PCRs that are not named.

    Raises:
        RuntimeDirError: The durable directory cannot be used.
        OSError: The file cannot be written.
    """
    kept = _Remembered(
        {str(index): tuple(sorted(v.hex() for v in values)) for index, values in pcrs.items()}
    )
    paths.make_durable()
    content = msgspec.json.format(msgspec.json.encode(kept))
    replace_file(_file(paths), content, paths.file_mode)


def forget_pcrs(paths: EnclavePaths) -> None:
    """Expect what the backend measures by itself, if it does.

    Raises:
        RuntimeDirError: It is another user's to say.
    """
    paths.require_own("sudo -u enclave enclave up --expect-pcr0 default")
    _file(paths).unlink(missing_ok=True)


def remembered_pcrs(paths: EnclavePaths) -> dict[int, frozenset[bytes]]:
    """Return what was chosen; empty if nothing was.

    Raises:
        ExpectedPcrsError: The file is damaged: nothing is trusted rather than anything.
    """
    path = _file(paths)
    try:
        with path.open("rb") as file:
            kept = msgspec.json.decode(file.read(_MAX_FILE_BYTES), type=_Remembered)
        return {
            int(index): frozenset(bytes.fromhex(value) for value in values)
            for index, values in kept.pcrs.items()
        }
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, ValueError) as error:
        raise ExpectedPcrsError(
            f"{path} is damaged ({error}); type: enclave up --expect-pcr0 VALUE"
        ) from error


def expected_pcrs(paths: EnclavePaths, measured_pcr0: str | None) -> dict[int, frozenset[bytes]]:
    """Return what a control stream is verified against.

    Args:
        paths: Of the enclave.
        measured_pcr0: What the backend measured as it started the enclave, in hex; None: nothing.

    Raises:
        NothingExpectedError: Of PCR0 nothing was chosen, and nothing measured.
        ExpectedPcrsError: The file is damaged.
    """
    expected = remembered_pcrs(paths)
    if 0 not in expected:
        if measured_pcr0 is None:
            raise NothingExpectedError(
                "no PCR0 is expected, and without one any image could answer; type: "
                "enclave up --expect-pcr0 HEX|FILE.eif"
            )
        expected[0] = frozenset({bytes.fromhex(measured_pcr0)})
    return expected
