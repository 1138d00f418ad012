"""One script's run in a vault of its own, from the notebook's side."""

import contextlib
import select
from collections.abc import Iterable
from typing import Final, Protocol

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.session.call_display import CallDisplay
from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_kernel.session.executed_notebook import ExecutedNotebook
from enclave_kernel.session.notebook_display import show_outputs
from enclave_kernel.session.package_failures import VaultDiedError
from enclave_kernel.session.script_outputs import OutputFiles
from enclave_kernel.session.vault_link import LoadedVaultLike, VaultLink
from enclave_protocol.errors import EnclaveError, ProtocolError
from enclave_protocol.script_messages import (
    MAX_IMAGE_BYTES,
    CellEnded,
    CellOutput,
    InputChunk,
    OutputChunk,
    RunScript,
    ScriptEnded,
    ScriptReply,
    decode_script_reply,
)
from enclave_protocol.vault_messages import (
    BODY_CHUNK_BYTES,
    BodyChunk,
    LoadFailed,
    Progress,
    Text,
    VaultMessageError,
)

__all__ = ["ScriptClient", "ScriptDisplay", "ScriptFiles"]

_REQUEST_ID: Final = 1


class ScriptDisplay(Protocol):
    """Shows what a script says while it runs."""

    def show(self, message: Progress | Text) -> None:
        """Show a message; never raises."""
        ...


class ScriptFiles(Protocol):
    """Takes what a script wrote."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Folders whose files are taken."""
        ...

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the archive."""
        ...


class ScriptClient:
    """Feeds a vault a package and a script's inputs, and takes what comes out of it.

    Args:
        vault: The vault; it and its socket are this object's from now on.
        package: How the package is shown, `<encrypted NAME VERSION>`.
        link: The way to the supervisor.

    Attributes:
        vault_id: What the supervisor calls the vault.
    """

    def __init__(self, vault: LoadedVaultLike, package: str, link: VaultLink) -> None:
        self.vault_id = vault.vault_id
        self._package = package
        self._link = link
        # Images of a notebook are the longest of what comes.
        self._channel = CallChannel(vault.socket, max_bulk_bytes=MAX_IMAGE_BYTES)

    def send_body(self, descriptor: int, size: int) -> bool:
        """Send the next part of the encrypted body; as `VaultClient.send_body`."""
        if select.select([self._channel], [], [], 0)[0]:
            return False
        try:
            self._channel.send_file(BodyChunk(), descriptor, size)
        except ChannelClosedError:
            raise self._died() from None
        return True

    def send_piece(self, message: BodyChunk | InputChunk, data: memoryview) -> bool:
        """Send bytes of the body or the inputs; False: the vault has refused them.

        Raises:
            VaultDiedError: The vault is gone.
        """
        if select.select([self._channel], [], [], 0)[0]:
            return False
        try:
            self._channel.send(message, (data,))
        except ChannelClosedError:
            raise self._died() from None
        return True

    def send_inputs(self, pieces: Iterable[bytes]) -> None:
        """Send the workspace's files; ends early when the vault refused them.

        Raises:
            VaultDiedError: The vault is gone.
        """
        buffer = bytearray()
        for piece in pieces:
            buffer += piece
            while len(buffer) >= BODY_CHUNK_BYTES:
                whole = memoryview(bytes(buffer[:BODY_CHUNK_BYTES]))
                if not self.send_piece(InputChunk(), whole):
                    return
                del buffer[:BODY_CHUNK_BYTES]
        if buffer:
            self.send_piece(InputChunk(), memoryview(bytes(buffer)))

    def run(
        self,
        script: str,
        arguments: tuple[str, ...],
        folders: tuple[str, ...],
        files: OutputFiles,
        notebook: ExecutedNotebook | None = None,
    ) -> ScriptEnded | LoadFailed:
        """Run the script to its end; its text and progress reach the cell of this thread.

        Args:
            script: Its name in the label.
            arguments: Of `sys.argv`.
            folders: Those of the workspace that it finds.
            files: Takes its outputs.
            notebook: Takes the outputs of its cells, if it is a notebook.

        Returns:
            How it ended, or why it did not begin.

        Raises:
            KeyboardInterrupt: Ctrl-C ended it.
            VaultDiedError: The vault is gone.
            EnclaveError: Its outputs cannot be taken.
            OSError: The same.
        """
        display = CallDisplay()
        watch = self.new_watch()
        request = RunScript(_REQUEST_ID, script, arguments, folders, files.outputs)
        try:
            ended = self.follow(request, watch, display, files, notebook)
            display.finish()
        except VaultDiedError:
            if watch.happened:
                raise KeyboardInterrupt from None
            raise
        if watch.happened:
            raise KeyboardInterrupt
        return ended

    def new_watch(self) -> CallInterrupt:
        """Return what interrupts the script, and kills it when it does not end by that."""
        return CallInterrupt(self._interrupt, self.kill)

    def follow(
        self,
        request: RunScript,
        watch: CallInterrupt,
        display: ScriptDisplay,
        files: ScriptFiles,
        notebook: ExecutedNotebook | None = None,
    ) -> ScriptEnded | LoadFailed:
        """Start the script and return how it ended, interrupted or not, or why it did not begin.

        Args:
            request: The script; its outputs are those of `files`.
            watch: From `new_watch`; it interrupts until this returns.
            display: Takes text and progress.
            files: Takes its outputs.
            notebook: As in `run`.

        Raises:
            VaultDiedError: The vault is gone, or sent what no vault sends.
            EnclaveError: Its outputs cannot be taken.
            OSError: The same.
        """
        try:
            with watch:
                # A vault that refused the package has closed nothing yet: its answer is read.
                with contextlib.suppress(ChannelClosedError):
                    self._channel.send(request)
                return self._follow(display, files, notebook)
        except ProtocolError:
            raise self._died() from None

    def close(self) -> None:
        """End the vault."""
        self._link.unload(self.vault_id)
        self._channel.close()

    def _follow(
        self, display: ScriptDisplay, files: ScriptFiles, notebook: ExecutedNotebook | None
    ) -> ScriptEnded | LoadFailed:
        while True:
            payload, contents = self._channel.receive()
            message: ScriptReply = decode_script_reply(payload)
            if isinstance(message, OutputChunk) and len(contents) == 1:
                files.feed(contents[0])
            elif isinstance(message, CellOutput | CellEnded) and notebook is not None:
                show_outputs(notebook.add(message, contents))
            elif contents:
                raise VaultMessageError("the vault sent something that was not announced")
            elif isinstance(message, Progress | Text):
                display.show(message)
            elif isinstance(message, ScriptEnded | LoadFailed):
                return message
            else:
                raise VaultMessageError("the vault sent a notebook's outputs, and runs none")

    def _interrupt(self) -> None:
        with contextlib.suppress(EnclaveError):
            self._link.interrupt(self.vault_id)

    def kill(self) -> None:
        """End the vault at once; whoever follows the script hears of it."""
        self._link.unload(self.vault_id)

    def _died(self) -> VaultDiedError:
        reason = self._link.death_reason(self.vault_id) or "the enclave did not say why"
        return VaultDiedError(f"the script of {self._package} has ended ({reason})")
