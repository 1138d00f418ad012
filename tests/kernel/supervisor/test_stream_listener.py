"""The supervisor's listener: what is TLS 1.3, what is bounded, and where its key is."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_kernel.supervisor.channel_identity import new_channel_identity
from enclave_parent_gateway.transport import tls_context
from enclave_protocol.channel_binding import channel_user_data, public_key_of
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    PROTOCOL_VERSION,
    Challenge,
    EnclaveStatus,
    Envelope,
    OpenControl,
    StatusRequest,
    decode_attested,
    encode,
)
from tests.support.supervisor_process import SupervisorProcess, hangs_up, supervisor_process

OPEN = OpenControl(version=PROTOCOL_VERSION)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[SupervisorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
    ):
        yield process


def answers(supervisor: SupervisorProcess) -> bool:
    with supervisor.control() as control:
        return isinstance(control.request(StatusRequest()), EnclaveStatus)


def test_it_speaks_tls_1_3_without_resumption(supervisor: SupervisorProcess) -> None:
    with supervisor.secure() as sock:
        assert sock.version() == "TLSv1.3"
        sock.sendall(encode_frame(encode(Challenge(b"n" * 32))))
        assert FrameDecoder().feed(sock.recv(65536))
        # A ticket would have come before the first byte of data.
        assert sock.session is None or not sock.session.has_ticket


def test_lower_versions_are_refused(supervisor: SupervisorProcess) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        context.wrap_socket(supervisor.open(OPEN))
    assert answers(supervisor)
    assert "UNSUPPORTED_PROTOCOL" in supervisor.log.read_text()


def test_a_supervisor_that_speaks_a_lower_version_is_refused() -> None:
    """The gateway's context, with the production identity made to offer less."""
    identity = new_channel_identity()
    identity.context.minimum_version = ssl.TLSVersion.TLSv1_2
    identity.context.maximum_version = ssl.TLSVersion.TLSv1_2
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_context().wrap_bio(theirs, ours)
    server = identity.context.wrap_bio(ours, theirs, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        server.do_handshake()


def test_plain_envelopes_get_no_answer(supervisor: SupervisorProcess) -> None:
    with supervisor.open(OPEN) as sock:
        sock.sendall(encode_frame(encode(Envelope(body=StatusRequest(), request_id=1))))
        assert hangs_up(sock)


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(encode(Envelope(body=StatusRequest(), request_id=1))),
        encode_frame(encode(Challenge(b"n" * 32)).replace(b"\xc4\x20", b"\xc4\x1f")),
        encode_frame(b"\xc1"),
        b"\x00\x01\x00\x00" + bytes(65536),
        b"\xff\xff\xff\xff",
    ],
    ids=["envelope", "short nonce", "no message", "64 KiB", "4 GiB"],
)
def test_nothing_is_answered_before_a_challenge(
    supervisor: SupervisorProcess, frame: bytes
) -> None:
    with supervisor.secure() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(frame)
        with contextlib.suppress(ssl.SSLError):
            assert hangs_up(sock)
    assert answers(supervisor)


def test_every_connection_is_attested_for_itself(supervisor: SupervisorProcess) -> None:
    documents = []
    for nonce in (b"a" * 32, b"b" * 32):
        with supervisor.secure() as sock:
            sock.sendall(encode_frame(encode(Challenge(nonce))))
            document = decode_attested(FrameDecoder().feed(sock.recv(65536))[0]).document
            key = public_key_of(sock.getpeercert(binary_form=True) or b"")
            assert nonce in document and channel_user_data(key) in document
            documents.append(document)
    assert documents[0] != documents[1]


def test_half_open_handshakes_are_bounded_and_end_in_time(supervisor: SupervisorProcess) -> None:
    """THREATS V-08: the Open message, half a handshake, a handshake and no challenge."""
    hello = b"\x16\x03\x01\x40\x00" + b"\x01\x01\xf0\x00" + bytes(10_000)
    before = descriptors(supervisor)
    idle: list[socket.socket] = []
    began = time.monotonic()
    try:
        for number in range(40):
            sock = supervisor.open(OPEN)
            idle.append(sock)
            if number % 3 == 1:
                sock.sendall(hello)
            elif number % 3 == 2:
                idle[-1] = tls_context().wrap_socket(sock)
        assert descriptors(supervisor) <= before + 70
        # Others are served meanwhile.
        assert answers(supervisor)
        for sock in idle:
            with contextlib.suppress(ssl.SSLError):
                while not hangs_up(sock):
                    pass
        assert 3 < time.monotonic() - began < 15
    finally:
        for sock in idle:
            sock.close()
    deadline = time.monotonic() + 5
    while descriptors(supervisor) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_oldest_of_many_control_streams_goes(supervisor: SupervisorProcess) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(supervisor.control()) for _ in range(20)]
        assert isinstance(streams[-1].request(StatusRequest()), EnclaveStatus)
        with pytest.raises((OSError, ConnectionError)):
            streams[0].request(StatusRequest())
    assert answers(supervisor)


def test_a_gateway_that_does_not_read_is_hung_up_on(supervisor: SupervisorProcess) -> None:
    ask = encode_frame(encode(Envelope(body=StatusRequest(), request_id=1)))
    with supervisor.control() as control:
        control.sock.settimeout(1)
        with pytest.raises(OSError):
            for _ in range(100_000):
                control.sock.sendall(ask * 100)
    assert answers(supervisor)


def descriptors(supervisor: SupervisorProcess) -> int:
    return len(os.listdir(f"/proc/{supervisor.pid}/fd"))  # noqa: PTH208


def test_the_identity_leaves_no_descriptor_and_no_file() -> None:
    code = """
import os
before = sorted(os.listdir("/proc/self/fd"))
from enclave_kernel.supervisor.channel_identity import new_channel_identity
identity = new_channel_identity()
assert sorted(os.listdir("/proc/self/fd")) == before
assert "channel-identity" not in open("/proc/self/maps").read()
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
