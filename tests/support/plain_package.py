"""A second implementation of docs/spec/encrypted_package.md, written from its text alone.

Plain and slow on purpose: HMAC for HKDF-Expand, one AESGCM call per chunk, tarfile for the
archive, json for the label. It shares no code with enclave_protocol, so that an agreement of
the two means something.
"""

import hashlib
import hmac
import io
import json
import struct
import tarfile
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def hkdf_expand_sha512(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2.3."""
    okm, block, counter = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([counter]), "sha512").digest()
        okm += block
        counter += 1
    return okm[:length]


def _derive(key: bytes, salt: bytes, context: bytes) -> tuple[AESGCM, bytes, bytes]:
    info = b"c2sp.org/chunked-encryption@v1+" + b"AEAD_AES_256_GCM" + b"\0" + salt + context
    okm = hkdf_expand_sha512(key, info, 76)
    return AESGCM(okm[:32]), okm[32:44], okm[44:76]


def _nonce(base: bytes, chunk: int) -> bytes:
    return bytes(a ^ b for a, b in zip(base, struct.pack(">IQ", 0, chunk), strict=True))


def seal(key: bytes, context: bytes, salt: bytes, message: bytes) -> bytes:
    aead, base, commitment = _derive(key, salt, context)
    sealed = salt + commitment
    for chunk in range(len(message) // 16384 + 1):
        piece = message[chunk * 16384 : (chunk + 1) * 16384]
        sealed += aead.encrypt(_nonce(base, chunk), piece, None)
    return sealed


def unseal(key: bytes, context: bytes, sealed: bytes) -> bytes:
    salt, commitment, rest = sealed[:24], sealed[24:56], sealed[56:]
    aead, base, expected = _derive(key, salt, context)
    if not hmac.compare_digest(commitment, expected):
        raise ValueError("commitment")
    message, chunk = b"", 0
    while len(rest) >= 16400:
        message += aead.decrypt(_nonce(base, chunk), rest[:16400], None)
        rest, chunk = rest[16400:], chunk + 1
    return message + aead.decrypt(_nonce(base, chunk), rest, None)


def pack_tar(files: dict[str, tuple[bytes, bool]]) -> bytes:
    """The archive, as tarfile writes it: it agrees with the spec wherever no pax is needed."""
    out = b""
    for path in sorted(files, key=lambda name: name.encode()):
        data, executable = files[path]
        info = tarfile.TarInfo(path)
        info.size, info.mode = len(data), 0o755 if executable else 0o644
        out += info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return out + bytes(1024)


def unpack_tar(archive: bytes) -> dict[str, tuple[bytes, bool]]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for info in tar:
            stream = tar.extractfile(info)
            if stream is None:
                raise ValueError(info.name)
            files[info.name] = stream.read(), info.mode == 0o755
    return files


def encode_label(label: dict[str, Any]) -> bytes:
    return json.dumps(label, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def make_header(label_bytes: bytes, wrapped_key: bytes) -> bytes:
    preamble = b"\x89ENCPKG\n" + struct.pack(">HHI", 1, len(wrapped_key), len(label_bytes))
    return preamble + label_bytes + wrapped_key


def make_package(
    label: dict[str, Any],
    files: dict[str, tuple[bytes, bool]],
    *,
    key: bytes,
    wrapped_key: bytes,
    salt: bytes,
) -> bytes:
    archive = pack_tar(files)
    label = {**label, "archive_bytes": len(archive), "file_count": len(files)}
    header = make_header(encode_label(label), wrapped_key)
    return header + seal(key, hashlib.sha512(header).digest(), salt, archive)


def open_package(data: bytes, key: bytes) -> tuple[dict[str, Any], dict[str, tuple[bytes, bool]]]:
    magic, version, wrapped_size, label_size = struct.unpack_from(">8sHHI", data)
    if magic != b"\x89ENCPKG\n" or version != 1:
        raise ValueError("magic")
    end = 16 + label_size + wrapped_size
    context = hashlib.sha512(data[:end]).digest()
    label: dict[str, Any] = json.loads(data[16 : 16 + label_size])
    return label, unpack_tar(unseal(key, context, data[end:]))
