"""Opens one package from the notebook's stream and serves it."""

import importlib
import secrets
import socket
from pathlib import Path
from typing import Final

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.dispatcher import Dispatcher
from enclave_kernel.vault.exports import Exports, build_exports
from enclave_kernel.vault.importer import PackageImporter
from enclave_kernel.vault.unpacking import Unpacker
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_errors import PackageError, PackageFormatError
from enclave_protocol.package_header import PackageHeader, decode_header
from enclave_protocol.package_label import check_label
from enclave_protocol.vault_messages import (
    BODY_CHUNK_BYTES,
    BodyChunk,
    BodyEnd,
    Loaded,
    LoadFailed,
    VaultMessageError,
    decode_session_message,
)

__all__ = ["OpeningPackage", "PackageImportError", "open_package", "serve_package"]

_MAX_REASON_CHARS: Final = 4000


class PackageImportError(PackageError):
    """The package's code raised while it was imported."""


class OpeningPackage:
    """A package whose header is known and whose body is still to come."""

    def __init__(self, header: PackageHeader, unpacker: Unpacker, root: Path) -> None:
        self.header = header
        self.unpacker = unpacker
        self.root = root


def open_package(header_raw: bytes, data_key: bytearray, root: Path) -> OpeningPackage:
    """Return a package ready to take its body.

    Args:
        header_raw: Everything before the body, as it is in the file.
        data_key: 32 bytes; the caller wipes it.
        root: Existing, empty directory for the package's data files.

    Raises:
        PackageError: The header breaks a rule.
    """
    header = decode_header(header_raw)
    if len(header.raw) != len(header_raw):
        raise PackageFormatError("the header has bytes behind its end")
    check_label(header.label)
    return OpeningPackage(header, Unpacker(header, data_key, root), root)


def serve_package(package: OpeningPackage, calls: socket.socket) -> None:
    """Take the body, import the package, and answer calls until the notebook is gone."""
    channel = CallChannel(calls)
    try:
        _receive_body(package, channel)
        policy = package.header.label.policy
        output = CallOutput(channel.send, policy.output)
        # Before its code is imported, which may keep what it finds as sys.stdout.
        output.install()
        dispatcher = Dispatcher(channel, _import(package), policy, output)
    except ChannelClosedError:
        return
    except EnclaveError as error:
        _report_failure(channel, error)
        return
    try:
        channel.send(Loaded())
        dispatcher.serve()
    except (ChannelClosedError, VaultMessageError):
        # A notebook that breaks the protocol loses its vault, and nothing else happens.
        return


def _receive_body(package: OpeningPackage, channel: CallChannel) -> None:
    """Decrypt what the notebook sends.

    Raises:
        PackageError: It is not the body of this package.
    """
    buffer = memoryview(bytearray(BODY_CHUNK_BYTES))
    while True:
        payload, contents = channel.receive(into=buffer)
        message = decode_session_message(payload)
        if isinstance(message, BodyChunk) and len(contents) == 1:
            package.unpacker.feed(contents[0])
        elif isinstance(message, BodyEnd) and not contents:
            return
        else:
            raise VaultMessageError("the notebook sent something else than the package's body")


def _import(package: OpeningPackage) -> Exports:
    """Verify that the body is complete, and only then run the package's code.

    Raises:
        PackageError: The body is not complete, the code raised, or lacks an export.
    """
    sources = package.unpacker.finish()
    label = package.header.label
    if not label.package.module:
        return Exports({}, {})
    name = f"<encrypted {label.package.name} {label.package.version}>"
    PackageImporter(str(package.root), name, sources).install()
    try:
        module = importlib.import_module(label.package.module)
    except BaseException:  # whatever it is, its text is the owner's
        raise PackageImportError(
            f"its code failed while it was imported [incident {secrets.token_hex(8)}]: tell its "
            "owner, who sees the error when importing the package in the enclave's environment"
        ) from None
    return build_exports(label, module)


def _report_failure(channel: CallChannel, error: EnclaveError) -> None:
    """Tell the notebook, and wait until it took it: a reset would throw the message away."""
    reason = error.reason if isinstance(error, PackageError) else str(error)
    buffer = memoryview(bytearray(BODY_CHUNK_BYTES))
    try:
        channel.send(LoadFailed(type(error).__name__, reason[:_MAX_REASON_CHARS]))
        while True:
            channel.receive(into=buffer)
    except (ChannelClosedError, VaultMessageError):
        return
