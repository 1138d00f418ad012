"""THREATS V-04: somebody else on the parent who can connect to the enclave, in the gateway's place.

On a Nitro parent any user can: AF_VSOCK asks for no right. Here a Unix socket stands for it, which
lets everybody in, and the attackers speak the whole protocol: TLS, challenge, attestation.
"""

import asyncio
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_kernel.supervisor.admission import Admission
from enclave_parent_gateway.attested_stream import open_attested
from enclave_parent_gateway.gateway_identity import gateway_key
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.channel_binding import public_key_of, verify_channel
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.gateway_proof import make_proof
from enclave_protocol.messages import (
    MAX_CHALLENGE_BYTES,
    PROTOCOL_VERSION,
    Challenge,
    MessageError,
    OpenControl,
    OpenWorkspace,
    decode_attested,
    encode,
)
from tests.support.supervisor_process import SupervisorProcess, hangs_up, supervisor_process

NONCE, ENCLAVE = b"n" * 32, b"an enclave's key"
OWN, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@pytest.fixture
def supervisor() -> Iterator[SupervisorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as process,
    ):
        yield process


def opens(
    supervisor: SupervisorProcess,
    key: Ed25519PrivateKey | None,
    opening: OpenControl | OpenWorkspace = OpenControl(PROTOCOL_VERSION),  # noqa: B008 (frozen)
) -> bool:
    """Return whether the enclave takes this gateway, by the gateway's own code."""

    def check(document: bytes, *, certificate: bytes, nonce: bytes) -> object:
        return verify_channel(
            document,
            certificate=certificate,
            nonce=nonce,
            root=supervisor.nsm.root,
            now=datetime.now(UTC),
            pcrs={0: {bytes.fromhex(supervisor.nsm.pcr0)}},
        )

    async def connect() -> None:
        stream = await open_attested(f"unix:{supervisor.path}", opening, check, key)
        stream.writer.close()

    try:
        asyncio.run(connect())
    except MessageError as error:
        assert "another gateway was there first" in str(error)
        return False
    return True


def test_v04_the_first_gateway_is_the_only_one(supervisor: SupervisorProcess) -> None:
    workspace = OpenWorkspace(PROTOCOL_VERSION)
    assert opens(supervisor, OWN)
    for opening in (OpenControl(PROTOCOL_VERSION), workspace):
        for stranger in (OTHER, None):
            assert not opens(supervisor, stranger, opening)
        # Started again, as after a crash.
        assert opens(supervisor, OWN, opening)


def secured(supervisor: SupervisorProcess) -> tuple[ssl.SSLSocket, bytes]:
    sock = supervisor.secure()
    return sock, public_key_of(sock.getpeercert(binary_form=True) or b"")


def test_v04_whoever_came_before_it_is_shown_out(supervisor: SupervisorProcess) -> None:
    """Only an enclave for development lets them in at all."""
    with supervisor.control() as before:
        assert opens(supervisor, OWN)
        assert hangs_up(before.sock)


def test_v04_a_proof_is_good_for_one_stream(supervisor: SupervisorProcess) -> None:
    sock, enclave_key = secured(supervisor)
    with sock:
        public = OWN.public_key().public_bytes_raw()
        proof = make_proof(OWN, purpose="control", nonce=NONCE, enclave_key=enclave_key)
        sock.sendall(encode_frame(encode(Challenge(NONCE, public, proof))))
        frames: list[bytes] = []
        decoder = FrameDecoder(MAX_CHALLENGE_BYTES)
        while not frames:
            frames = decoder.feed(sock.recv(65536))
        assert decode_attested(frames[0]).document
    elsewhere = make_proof(OWN, purpose="control", nonce=NONCE, enclave_key=b"impostor's")
    workspace = make_proof(OWN, purpose="workspace", nonce=NONCE, enclave_key=enclave_key)
    for challenge in (
        Challenge(b"m" * 32, public, proof),
        Challenge(NONCE, public, elsewhere),
        # Somebody in between who changes the one word before TLS gets nowhere.
        Challenge(NONCE, public, workspace),
        Challenge(NONCE, public, b""),
        Challenge(NONCE, b"", proof),
        Challenge(NONCE, OTHER.public_key().public_bytes_raw(), proof),
        Challenge(NONCE, b"short", proof),
    ):
        sock, _ = secured(supervisor)
        with sock:
            sock.sendall(encode_frame(encode(challenge)))
            assert hangs_up(sock)


def test_v04_an_enclave_takes_nobody_without_a_key() -> None:
    enclave = Admission(ENCLAVE, required=True)
    with pytest.raises(MessageError, match="no gateway"):
        enclave.admit(Challenge(NONCE), "control")
    proof = make_proof(OWN, purpose="control", nonce=NONCE, enclave_key=ENCLAVE)
    assert enclave.admit(Challenge(NONCE, OWN.public_key().public_bytes_raw(), proof), "control")


def test_v04_nobody_else_reads_the_gateways_key(tmp_path: Path) -> None:
    paths = EnclavePaths(tmp_path, tmp_path / "state")
    key = gateway_key(paths)
    assert gateway_key(paths).private_bytes_raw() == key.private_bytes_raw()
    assert stat.S_IMODE(paths.gateway_key.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [paths.gateway_key]


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="no AF_VSOCK here")
def test_v04_the_control_any_user_can_open_a_vsock() -> None:
    """Why this is needed: no right is asked for."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
            os.write(writer, b"open")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"open"
