"""The enclave's side of egress, with the real proxy behind it; the streams are socket pairs."""

import asyncio
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from enclave_kernel.isolation.notebook_network import listen_for_notebook
from enclave_kernel.key_release_errors import KeyReleaseError, KmsUnreachableError
from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.supervisor.control_stream import NoGatewayError
from enclave_kernel.supervisor.egress import Egress, EgressListener
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.errors import EnclaveError
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.messages import EgressWanted, OpenEgress
from enclave_protocol.package_header import (
    PackageHeader,
    decode_header,
    encode_header,
    encryption_context,
)
from enclave_protocol.package_label import encode_label
from tests.support.certificates import self_signed
from tests.support.egress import LOOPBACK, OWN_LOOPBACK, ProxyServer, names, proxy_server, server
from tests.support.example_package import FILES, make_label
from tests.support.local_services import (
    HOST_CREDENTIALS,
    TEST_PCR0,
    LocalCloudProcess,
    local_cloud,
    release_policy,
    software_nsm,
)


@asynccontextmanager
async def joined(proxy: ProxyServer) -> AsyncIterator[Egress]:
    """Return the enclave's side, whose streams the proxy serves as the gateway has it do."""
    serving: set[asyncio.Task[None]] = set()

    def announce(wanted: EgressWanted) -> bool:
        inside, outside = socket.socketpair()
        task = asyncio.create_task(proxy.proxy.serve(outside, wanted.kernel_id))
        serving.add(task)
        task.add_done_callback(serving.discard)
        asyncio.get_running_loop().call_soon(egress.take, OpenEgress(wanted.ticket), inside)
        return True

    egress = Egress(announce)
    yield egress
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def test_without_a_gateway() -> None:
    egress = Egress(lambda _: False)
    with pytest.raises(NoGatewayError):
        await egress.stream(None)
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    listener = EgressListener(egress, sock, "ab-cd")
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 502 enclave: the gateway on the parent instance does not")
    writer.close()
    listener.close()
    await asyncio.sleep(0.05)
    assert sock.fileno() == -1


async def test_a_stream_nobody_waits_for_is_closed() -> None:
    """The gateway makes a ticket up, sends one twice, or comes too late."""
    announced: list[EgressWanted] = []

    def announce(wanted: EgressWanted) -> bool:
        announced.append(wanted)
        return True

    egress = Egress(announce)
    ours, theirs = socket.socketpair()
    with theirs:
        egress.take(OpenEgress("0" * 32), ours)
        assert theirs.recv(1) == b""
    waiting = asyncio.create_task(egress.stream("ab-cd"))
    await asyncio.sleep(0)
    (wanted,) = announced
    assert wanted.kernel_id == "ab-cd"
    first, second = socket.socketpair(), socket.socketpair()
    egress.take(OpenEgress(wanted.ticket), first[0])
    egress.take(OpenEgress(wanted.ticket), second[0])
    assert second[1].recv(1) == b""
    assert await waiting is first[0]
    waiting = asyncio.create_task(egress.stream("ab-cd"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    late = socket.socketpair()
    egress.take(OpenEgress(announced[-1].ticket), late[0])
    assert late[1].recv(1) == b""
    for pair in (first, second, late):
        for sock in pair:
            sock.close()
    assert len({wanted.ticket for wanted in announced}) == 2


def test_a_process_without_a_network_of_its_own() -> None:
    with pytest.raises((EnclaveError, OSError)):
        listen_for_notebook(os.getpid())


def _package(cloud: LocalCloudProcess, arn: str) -> tuple[PackageHeader, bytes]:
    """Return a package's header and its data key, as `enclave-owner encrypt` makes them."""
    key = secrets.token_bytes(32)
    label = make_label(FILES, data_key=key)
    context = encryption_context(label, encode_label(label))
    answer = cloud.owner.encrypt(KeyId=arn, Plaintext=key, EncryptionContext=context)
    return decode_header(encode_header(label, KeySlot(arn, answer["CiphertextBlob"]))), key


async def test_kms_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's own call; what variables say of proxies counts for nothing."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    with (
        software_nsm(tmp_path) as nsm,
        local_cloud(tmp_path, root_cert=nsm.root_cert) as cloud,
        RsaPool(1) as keys,
        NsmClient.open(nsm.endpoint) as client,
    ):
        key = cloud.owner.create_key(Policy=release_policy(TEST_PCR0))["KeyMetadata"]["Arn"]
        header, data_key = _package(cloud, key)
        host = cloud.endpoint_url.removeprefix("http://")
        async with (
            proxy_server(tmp_path, host, addresses=LOOPBACK) as proxy,
            joined(proxy) as egress,
        ):

            def release(url: str) -> bytearray:
                return release_data_key(
                    header,
                    nsm=client,
                    keys=keys,
                    credentials=HOST_CREDENTIALS,
                    endpoint_url=cloud.endpoint_url,
                    proxy_url=url,
                    clock=TrustedClock(),
                )

            async with egress.own_proxy() as url:
                assert await asyncio.to_thread(release, url) == data_key
            closed = await proxy.last_logged("closed")
            assert (closed.kernel, closed.destination) == (None, host)
            # Taken off the list, it is out of reach.
            proxy.rules.clear()
            async with egress.own_proxy() as url:
                with pytest.raises(KeyReleaseError, match=f"enclave proxy allow {host}"):
                    await asyncio.to_thread(release, url)
            await asyncio.sleep(0.05)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may listen on port 443")
async def test_tls_to_kms_ends_in_the_enclave(tmp_path: Path) -> None:
    """THREATS A-06: whoever sits behind the proxy with another certificate learns nothing."""
    name = "kms.eu-west-1.amazonaws.com"
    certificate, key_file = self_signed(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key_file)
    heard: list[bytes] = []

    async def listen_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65536))

    arn = "arn:aws:kms:eu-west-1:111111111111:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    header = decode_header(encode_header(make_label(FILES), KeySlot(arn, b"placeholder")))
    with (
        software_nsm(tmp_path) as nsm,
        RsaPool(1) as keys,
        NsmClient.open(nsm.endpoint) as client,
    ):
        async with (
            server(listen_in, OWN_LOOPBACK, 443, context),
            proxy_server(
                tmp_path, "kms", addresses=LOOPBACK, resolve=names({name: [OWN_LOOPBACK]})
            ) as proxy,
            joined(proxy) as egress,
            egress.own_proxy() as url,
        ):

            def release() -> bytearray:
                return release_data_key(
                    header,
                    nsm=client,
                    keys=keys,
                    credentials=HOST_CREDENTIALS,
                    endpoint_url=None,
                    proxy_url=url,
                    clock=TrustedClock(),
                )

            with pytest.raises(KmsUnreachableError, match="SSLError"):
                await asyncio.to_thread(release)
            opened = [entry for entry in proxy.logged() if entry.event == "opened"]
            assert opened and {entry.destination for entry in opened} == {f"{name}:443"}
            proxy.rules.clear()
            with pytest.raises(KmsUnreachableError, match="enclave proxy allow kms"):
                await asyncio.to_thread(release)
    assert heard == [] or set(heard) == {b""}
