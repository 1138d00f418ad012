"""Opens one package from the notebook's stream and serves it."""

import importlib
import socket
from pathlib import Path
from typing import Final

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.trusted_clock import TrustedClock
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.dispatcher import Dispatcher
from enclave_kernel.vault.exports import Exports, build_exports
from enclave_kernel.vault.importer import PackageImporter
from enclave_kernel.vault.incidents import Incidents, take_incident_key
from enclave_kernel.vault.requirements import check_requirements
from enclave_kernel.vault.script_files import InputFiles
from enclave_kernel.vault.script_service import run_script
from enclave_kernel.vault.unpacking import Unpacker
from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_errors import PackageError, PackageFormatError
from enclave_protocol.package_header import PackageHeader, decode_header
from enclave_protocol.package_label import check_label
from enclave_protocol.script_messages import InputChunk, RunScript, decode_opening_message
from enclave_protocol.vault_messages import (
    BODY_CHUNK_BYTES,
    BodyChunk,
    BodyEnd,
    Loaded,
    LoadFailed,
    VaultMessageError,
)

__all__ = [
    "OpeningPackage",
    "PackageImportError",
    "WorkspaceRefusedError",
    "open_package",
    "serve_package",
]

_MAX_REASON_CHARS: Final = 4000
_WORKSPACE_FOLDER: Final = "workspace"


class PackageImportError(PackageError):
    """The package's code raised while it was imported."""


class WorkspaceRefusedError(PackageError):
    """The package's policy shuts it off from the workspace, and files of it came."""


class OpeningPackage:
    """A package whose header is known and whose body is still to come."""

    def __init__(
        self, header: PackageHeader, unpacker: Unpacker, root: Path, clock: TrustedClock
    ) -> None:
        self.header = header
        self.clock = clock
        self.unpacker = unpacker
        self.root = root


def open_package(
    header_raw: bytes, data_key: bytearray, root: Path, clock: TrustedClock
) -> OpeningPackage:
    """Return a package ready to take its body.

    Args:
        header_raw: Everything before the body, as it is in the file.
        data_key: 32 bytes; the caller wipes it.
        root: Existing, empty directory for the package's data files.
        clock: Set by the supervisor.

    Raises:
        PackageError: The header breaks a rule.
    """
    header = decode_header(header_raw)
    if len(header.raw) != len(header_raw):
        raise PackageFormatError("the header has bytes behind its end")
    check_label(header.label)
    return OpeningPackage(header, Unpacker(header, data_key, root), root, clock)


def serve_package(package: OpeningPackage, calls: socket.socket) -> None:
    """Take the body, and then answer calls until the notebook is gone, or run one script."""
    channel = CallChannel(calls)
    inputs = InputFiles(_workspace(package.root))
    try:
        request = _receive_body(package, channel, inputs)
        importer = _importer(package)
        check_requirements(package.header.label.package.requirements)
        # Not in a variable: the incidents may be told to forget it.
        incidents = Incidents(take_incident_key(package.root), importer.root, importer.file_name)
        if request is not None:
            label, notebooks = package.header.label, package.unpacker.notebooks
            run_script(
                request, label, importer, notebooks, incidents, inputs, channel, package.clock
            )
            return
        policy = package.header.label.policy
        output = CallOutput(channel.send, policy.output)
        # Before its code is imported, which may keep what it finds as sys.stdout.
        output.install()
        exports = _import(package, importer, incidents)
        dispatcher = Dispatcher(channel, exports, policy, output, incidents, package.clock)
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


def _workspace(root: Path) -> Path:
    folder = root.with_name(_WORKSPACE_FOLDER)
    folder.mkdir(mode=0o700)
    return folder


def _receive_body(
    package: OpeningPackage, channel: CallChannel, inputs: InputFiles
) -> RunScript | None:
    """Decrypt what the notebook sends; return the script it wants run, or None: it wants to call.

    Raises:
        PackageError: It is not the body of this package, or the inputs are no archive.
    """
    # The second holds the last piece of the body, which is still being hashed: whatever comes now,
    # of the body or not, must not be written over it.
    buffers = [memoryview(bytearray(BODY_CHUNK_BYTES)) for _ in range(2)]
    inputs_began = False
    while True:
        payload, contents = channel.receive(into=buffers[0])
        message = decode_opening_message(payload)
        if isinstance(message, BodyChunk) and len(contents) == 1 and not inputs_began:
            package.unpacker.feed(contents[0])
            buffers.reverse()
        elif isinstance(message, InputChunk) and len(contents) == 1:
            inputs_began = True
            if package.header.label.policy.workspace == "none":
                raise WorkspaceRefusedError(
                    "its owner does not let it see files of the workspace: leave out the paths "
                    "that begin with /"
                )
            inputs.feed(contents[0])
        elif isinstance(message, RunScript) and not contents:
            return message
        elif isinstance(message, BodyEnd) and not contents and not inputs_began:
            return None
        else:
            raise VaultMessageError("the notebook sent something else than the package's body")


def _importer(package: OpeningPackage) -> PackageImporter:
    """Verify that the body is complete: only then may anything of it run.

    Raises:
        PackageError: It is not.
    """
    label = package.header.label.package
    name = f"<encrypted {label.name} {label.version}>"
    return PackageImporter(
        str(package.root),
        name,
        package.unpacker.finish(),
        native=package.header.label.policy.native,
    )


def _import(package: OpeningPackage, importer: PackageImporter, incidents: Incidents) -> Exports:
    """Run the package's code.

    Raises:
        PackageError: It raised, or lacks an export.
    """
    label = package.header.label
    if not label.package.module:
        return Exports({}, {})
    importer.install()
    try:
        module = importlib.import_module(label.package.module)
    except BaseException as error:  # whatever it is, its text is the owner's
        raise PackageImportError(
            f"its code failed while it was imported [incident {incidents.new(error)}]: tell its "
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
