"""The egress proxy as the gateway runs it: a stream for each connection that the enclave announces.

The enclave cannot connect out; it says on the control stream that a connection waits, and the
gateway opens a stream for it, as it does for everything else (docs/spec/egress.md, "Streams").
"""

import asyncio
import logging
import resource
import socket
from contextlib import suppress
from typing import Final

from enclave_parent_gateway.api import ChangeEgress, EgressRules, EgressStatus
from enclave_parent_gateway.egress.addresses import AddressPolicy
from enclave_parent_gateway.egress.allowlist import (
    PACKAGE_INDEX,
    Allowlist,
    Rule,
    suggested_rule,
)
from enclave_parent_gateway.egress.allowlist_file import AllowlistFile
from enclave_parent_gateway.egress.connection_log import ConnectionLog
from enclave_parent_gateway.egress.destination import Destination
from enclave_parent_gateway.egress.errors import AllowlistError
from enclave_parent_gateway.egress.package_index import package_index_rule
from enclave_parent_gateway.egress.proxy import EgressProxy
from enclave_parent_gateway.egress.resolver import SystemResolver
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_parent_gateway.transport import connect
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import encode_frame
from enclave_protocol.messages import EgressWanted, OpenEgress, encode

__all__ = ["EgressService", "make_room_for_connections"]

_log = logging.getLogger(__name__)
_MAX_STREAMS: Final = 2048
"""Twice what the proxy serves: the rest is told that there is no room. The enclave is not trusted
to stop anywhere."""

_MAX_DESCRIPTORS: Final = 65_536
_SHOWN_RULES: Final = 100
"""In a status; all of them are what `enclave proxy list` is for."""


def make_room_for_connections() -> None:
    """Raise this process's own limit of descriptors: a connection takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class EgressService:
    """Proxy, allowlist and log of one enclave.

    Args:
        paths: Of the enclave.
        endpoint: The supervisor's, as in `transport.connect`.
        addresses: What the proxy may connect to.
        own: As in `EgressProxy`.
    """

    def __init__(
        self,
        paths: EnclavePaths,
        endpoint: str,
        addresses: AddressPolicy,
        own: Destination | None = None,
    ) -> None:
        self._paths = paths
        self._endpoint = endpoint
        self._file = AllowlistFile(paths.durable)
        self._resolver = SystemResolver()
        self._allowlist: Allowlist | None = None
        self._proxy = EgressProxy(
            allowlist=self._allowed,
            addresses=addresses,
            resolve=self._resolver,
            log=ConnectionLog(paths.egress_log),
            suggest=self._suggest,
            own=own,
        )
        self._package_index: asyncio.Future[Rule] | None = None
        self._streams: set[asyncio.Task[None]] = set()

    def _allowed(self) -> Allowlist:
        if self._allowlist is None:
            self._allowlist = self._file.read()
        return self._allowlist

    async def _suggest(self, destination: Destination) -> str:
        rule = suggested_rule(destination)
        if rule == str(destination):
            if self._package_index is None:
                # Once for each gateway, when somebody asks for a host that is not allowed.
                looking = asyncio.to_thread(package_index_rule)
                self._package_index = asyncio.ensure_future(looking)
            with suppress(AllowlistError):
                if (await asyncio.shield(self._package_index)).allows(destination):
                    return PACKAGE_INDEX
        return rule

    async def change(self, request: ChangeEgress) -> EgressRules:
        """Change the allowlist, on disk and in force; cut what it does not allow any more.

        Raises:
            AllowlistError: It is not changed.
        """
        if request.allow or request.deny:
            self._paths.make_durable()
            self._allowlist = await asyncio.to_thread(
                self._file.change, request.allow, request.deny
            )
            self._proxy.end_what_is_not_allowed()
        return EgressRules(self._allowed().rules, self._proxy.connections)

    def status(self) -> EgressStatus:
        """Return what is allowed and what was done."""
        counts = self._proxy.counts()
        rules: tuple[Rule, ...] = ()
        problem = None
        try:
            rules = self._allowed().rules
        except AllowlistError as error:
            problem = str(error)
        return EgressStatus(
            rules=tuple(_shown(rule) for rule in rules[:_SHOWN_RULES]),
            rule_count=len(rules),
            problem=problem,
            connections=self._proxy.connections,
            allowed=counts.allowed,
            denied=counts.denied,
            failed=counts.failed,
            bytes_out=counts.bytes_out,
            bytes_in=counts.bytes_in,
        )

    def carry(self, wanted: EgressWanted) -> None:
        """Open a stream for a connection that waits in the enclave, and serve it."""
        if len(self._streams) >= _MAX_STREAMS:
            # The connection in the enclave ends by itself when its time is up.
            _log.warning("over %d connections to the proxy are open", _MAX_STREAMS)
            return
        task = asyncio.create_task(self._carry(wanted))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _carry(self, wanted: EgressWanted) -> None:
        try:
            sock = await asyncio.to_thread(self._open_stream, wanted)
        except (EnclaveError, OSError) as error:
            _log.warning("no stream for a connection to the proxy: %s", error)
            return
        await self._proxy.serve(sock, wanted.kernel_id)

    def _open_stream(self, wanted: EgressWanted) -> socket.socket:
        sock = connect(self._endpoint)
        try:
            sock.sendall(encode_frame(encode(OpenEgress(wanted.ticket))))
        except OSError:
            sock.close()
            raise
        return sock

    async def close(self) -> None:
        """End every connection."""
        for task in self._streams:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._streams, return_exceptions=True)
        self._resolver.close()


def _shown(rule: Rule) -> str:
    """Return a rule in a few words; one that opens private networks says so."""
    return f"{rule.text} (also in {', '.join(rule.private)})" if rule.private else rule.text
