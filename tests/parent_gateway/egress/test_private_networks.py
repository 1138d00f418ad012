"""Servers at private addresses, in a network of the test's own."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from pathlib import Path

import pytest

from enclave_parent_gateway.egress.allowlist import Rule
from tests.support.egress import names, proxy_server, server
from tests.support.own_network import enter_own_network

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a network of one's own needs root")
VPC, OTHER = "10.203.0.7", "10.204.0.7"


def in_own_network(work: Coroutine[None, None, None]) -> None:
    """Run `work` in a thread whose network has these two addresses and no way out."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            enter_own_network(VPC, OTHER)
            asyncio.run(work)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await reader.read(1)
    writer.close()


@needs_root
def test_only_where_the_rule_says(tmp_path: Path) -> None:
    async def work() -> None:
        known = {"a.example": [VPC], "b.example": [OTHER], "c.example": [VPC]}
        known["rebinds.example"] = [VPC, OTHER, "127.0.0.1"]
        async with server(hello, VPC) as port, server(hello, OTHER, port):
            hosts = [f"{name}.example:{port}" for name in ("a", "b", "rebinds")]
            rules = [Rule(host, private=("10.203.0.0/16",)) for host in hosts]
            rules.append(Rule(f"c.example:{port}"))
            async with proxy_server(tmp_path, *rules, resolve=names(known)) as proxy:
                for host, status in (
                    *(("a.example", b"200"), ("b.example", b"403"), ("c.example", b"403")),
                    *(("rebinds.example", b"200"), ("rebinds.example", b"403")),
                    *(("rebinds.example", b"403"), ("a.example", b"200")),
                ):
                    line, reader, writer = await proxy.connect(f"{host}:{port}")
                    assert line.split()[1] == status, (host, line)
                    if status == b"200":
                        assert await reader.readexactly(5) == b"hello"
                    writer.close()
                refused = [entry for entry in proxy.logged() if entry.event == "refused"]
                assert "--private NETWORK" in (refused[0].reason or "")

    in_own_network(work())


@needs_root
def test_a_network_taken_away_cuts(tmp_path: Path) -> None:
    async def work() -> None:
        async with server(hello, VPC) as port:
            host = f"a.example:{port}"
            rule = Rule(host, private=("10.203.0.0/16",))
            resolve = names({"a.example": [VPC]})
            async with proxy_server(tmp_path, rule, resolve=resolve) as proxy:
                _, reader, writer = await proxy.connect(host)
                assert await reader.readexactly(5) == b"hello"
                proxy.rules[:] = [Rule(host)]
                proxy.proxy.end_what_is_not_allowed()
                assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()

    in_own_network(work())
