"""ipykernel's kernel, with what an enclave's adds: its usage, and which cells it has not answered.

Source: ipykernel 7.4, `kernelbase.py`: requests come in the shell channel's thread
(`shell_channel_thread_main`), wait, and are run one after another (`dispatch_shell`).
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from ipykernel.ipkernel import IPythonKernel

from enclave_kernel.session.pending_cells import PendingCells
from enclave_kernel.session.reply_retry import retry_replies
from enclave_kernel.session.supervisor_link import SupervisorLink
from enclave_kernel.session.usage_reply import UsageReply

__all__ = ["EnclaveKernel"]


class EnclaveKernel(IPythonKernel):
    """The kernel of one notebook."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._usage = UsageReply()
        self._cells = PendingCells()

    def start(self) -> None:
        """Begin to take requests."""
        if self.shell_stream is not None:
            retry_replies(self.shell_stream)
        super().start()  # type: ignore[no-untyped-call]

    @property
    def supervisor_link(self) -> SupervisorLink | None:
        """Who is told of cells, and knows of vaults."""
        return self._cells.link

    @supervisor_link.setter
    def supervisor_link(self, link: SupervisorLink) -> None:
        self._cells.link = link

    async def usage_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer one `usage_request`, from the control thread."""
        content = await asyncio.to_thread(self._usage.content, self.supervisor_link)
        if self.session:
            self.session.send(stream, "usage_reply", content, parent, ident)

    async def shell_channel_thread_main(self, msg: Any) -> None:
        """Pass a request on to whoever runs it, in the shell channel's thread."""
        self._cells.asked(*self._sender(msg))
        await super().shell_channel_thread_main(msg)  # type: ignore[no-untyped-call]

    async def dispatch_shell(
        self, msg: Any, /, subshell_id: str | None = None, *, concurrent: bool = False
    ) -> None:
        """Run a request, or refuse it after an error before it."""
        # Now: a request is not read a second time, lest somebody repeats it.
        header = self._sender(msg)[1]
        try:
            await super().dispatch_shell(msg, subshell_id, concurrent=concurrent)
        finally:
            self._cells.answered(header)

    def _send_unknown_subshell_reply(self, idents: Any, msg: Any, err: Any) -> None:
        super()._send_unknown_subshell_reply(idents, msg, err)
        self._cells.answered(msg["header"])

    def _sender(self, msg: Any) -> tuple[list[bytes], Mapping[str, Any]]:
        """Return the routing ids and the header of a request that is signed; else of none."""
        if not self.session:
            return [], {}
        try:
            identities, frames = self.session.feed_identities(msg, copy=False)
            header = self.session.deserialize(frames, content=False, copy=False)["header"]
        except (ValueError, KeyError, TypeError):
            # The base class looks at it again, and says in its log what is wrong.
            return [], {}
        return [bytes(getattr(one, "bytes", one)) for one in identities], header
