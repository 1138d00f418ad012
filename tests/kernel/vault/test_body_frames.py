"""A signed body in frames that our own client never sends: what is hashed is what is decrypted."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_encryption.publisher_keys import FileKey
from enclave_kernel.session.package_loading import open_encrypted
from enclave_kernel.session.script_client import ScriptClient
from enclave_protocol.script_messages import RunScript, ScriptEnded, decode_script_reply
from enclave_protocol.vault_messages import BODY_CHUNK_BYTES, BodyChunk, LoadFailed
from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_link import VaultLink

_MANIFEST = (
    "[package]\nname = 'app'\nversion = '1'\npublisher = 'ACME'\n"
    "[scripts]\nrun = { file = 'run.py' }\n"
)
_WEIGHTS = random.Random(3).randbytes(9 * 2**20)
_CODE = f"""
import hashlib
right = hashlib.sha256(open('weights.bin', 'rb').read()).hexdigest()
assert right == '{hashlib.sha256(_WEIGHTS).hexdigest()}'
"""
# A vault's buffer, what does not fit into it, what ends within a segment, and nothing.
_SIZES = (0, 1, 16401, 2**20 - 1, BODY_CHUNK_BYTES, BODY_CHUNK_BYTES, BODY_CHUNK_BYTES + 1, 2**22)


@pytest.fixture(scope="module")
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture(scope="module")
def package() -> SealedPackage:
    publisher = FileKey(Ed25519PrivateKey.generate())
    files: dict[str, str | bytes] = {"run.py": _CODE, "weights.bin": _WEIGHTS}
    return seal_package(files, _MANIFEST, publisher=publisher)


def _send(link: VaultLink, file: Path, seed: int, *, tail: bytes = b"") -> ScriptEnded | LoadFailed:
    rng = random.Random(seed)
    with open_encrypted(str(file)) as opened:
        client = opened.start(link, ScriptClient, lambda _stage, _share: None)
        channel = client._channel
        try:
            left = memoryview(opened.stream.read() + tail)
            while left:
                piece = left[: rng.choice(_SIZES)]
                left = left[len(piece) :]
                if rng.random() < 0.3:
                    channel._send_sealed(BodyChunk(), (piece,))
                else:
                    channel.send(BodyChunk(), (piece,))
            channel.send(RunScript(1, "run", (), (), ()))
            while True:
                reply = decode_script_reply(channel.receive()[0])
                if isinstance(reply, ScriptEnded | LoadFailed):
                    return reply
        finally:
            client.close()


@pytest.mark.parametrize("seed", range(6))
def test_any_frames(link: VaultLink, package: SealedPackage, tmp_path: Path, seed: int) -> None:
    link.add(package)
    file = package.write(tmp_path / "app.encrypted")
    assert _send(link, file, seed) == ScriptEnded(0)


def test_more_than_the_body(link: VaultLink, package: SealedPackage, tmp_path: Path) -> None:
    link.add(package)
    file = package.write(tmp_path / "app.encrypted")
    reply = _send(link, file, 1, tail=bytes(3 * 2**20))
    assert isinstance(reply, LoadFailed)
    assert reply.kind == "PackageTamperedError"
