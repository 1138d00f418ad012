"""Write the vectors of docs/spec/encrypted_package.md with the second implementation only.

    python tests/vectors/make_package_vectors.py        # from the project's root

Deterministic: running it again changes nothing, and a test checks that. Keys and salts are
SHA-256 hashes of their names; messages are repeated byte counters.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import plain_package as plain

HERE = Path(__file__).parent
SIZES = (0, 1, 1024, 16383, 16384, 16385, 20480, 32768, 49153)


def derive(name: str, size: int = 32) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:size]


def message(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def chunked_vectors() -> dict[str, Any]:
    valid = []
    for size in SIZES:
        key, salt = derive(f"key {size}"), derive(f"salt {size}", 24)
        context = b"" if size == 1024 else derive(f"context {size}")
        sealed = plain.seal(key, context, salt, message(size))
        valid.append(
            {
                "name": f"{size} bytes",
                "key": key.hex(),
                "context": context.hex(),
                "salt": salt.hex(),
                "message_bytes": size,
                "prefix": sealed[:56].hex(),
                "last_chunk_tail": sealed[-16:].hex(),
                "ciphertext_bytes": len(sealed),
                "ciphertext_sha256": hashlib.sha256(sealed).hexdigest(),
            }
        )
    return {
        "construction": "c2sp.org/chunked-encryption@v1, AEAD_AES_256_GCM, SHA-512",
        "message": "bytes 0, 1, ... 250, 0, 1, ... cut to message_bytes",
        "valid": valid,
        "invalid": invalid_chunked(),
    }


def invalid_chunked() -> list[dict[str, Any]]:
    """Edits of the 32768-byte vector, as (offset, bytes removed, hex inserted)."""
    full = 56 + 2 * 16400
    cases: list[tuple[str, int, int, str, str]] = [
        ("empty", 0, full + 16, "", "PackageTruncatedError"),
        ("cut within the salt", 10, full + 6, "", "PackageTruncatedError"),
        ("cut after the commitment", 56, full - 40, "", "PackageTruncatedError"),
        ("cut after the first chunk", 56 + 16400, 16416, "", "PackageTruncatedError"),
        ("last chunk missing", full, 16, "", "PackageTruncatedError"),
        ("last tag cut", full + 15, 1, "", "PackageTruncatedError"),
        ("cut within a chunk", 56 + 100, full - 140, "", "PackageTamperedError"),
        ("salt altered", 0, 1, "ff", "PackageTamperedError"),
        ("commitment altered", 24, 1, "ff", "PackageTamperedError"),
        ("first chunk removed", 56, 16400, "", "PackageTamperedError"),
        ("byte appended", full + 16, 0, "00", "PackageTamperedError"),
        ("byte inserted at a chunk boundary", 56 + 16400, 0, "00", "PackageTamperedError"),
    ]
    keys = ("name", "offset", "removed", "inserted", "error")
    return [{"of": "32768 bytes", **dict(zip(keys, case, strict=True))} for case in cases]


def label(publisher: str) -> dict[str, Any]:
    return {
        "package": {
            "name": "vector",
            "version": "1.0",
            "description": "Grüße",
            "module": "vector",
            "publisher": publisher,
            "requirements": ["numpy>=2"],
        },
        "exports": {
            "functions": {"score": "score(x, *, threshold=0.5)"},
            "classes": {
                "Scorer": {"init": "Scorer()", "methods": ["predict(x)"], "attributes": ["t"]}
            },
            "returns": {"score": "value"},
        },
        "docs": {"score": "Scores."},
        "scripts": {"run": {"file": "run.py", "output": "text"}},
        "policy": {
            "errors": ["ValueError"],
            "output": "progress",
            "callbacks": {},
            "workspace": "read",
            "native": False,
            "max_calls": 0,
            "max_result_bytes": 0,
            "calls_per_minute": 0,
            "expires": "",
            "environment": "production",
        },
    }


ARN = "arn:aws:kms:eu-central-1:123456789012:key/1234-abcd"

FILES = {
    "vector.py": (b"def score(x, *, threshold=0.5):\n    return x\n", False),
    "run.py": (b"print('run')\n", True),
    "weights.bin": (message(20000), False),
    "übung/leer": (b"", False),
}


_KEYS = ("name", "offset", "removed", "inserted", "error")


def write_package_vectors(folder: Path, *, signed: bool) -> None:
    """Write an encrypted package, what is in it, edits that are allowed, and edits that are not."""
    key, wrapped = derive("package key"), b"wrapped:" + derive("wrapped")
    private = Ed25519PrivateKey.from_private_bytes(derive("publisher key")) if signed else None
    whole = plain.make_package(
        label("Vector Maker" if signed else ""),
        FILES,
        key=key,
        arn=ARN,
        wrapped_key=wrapped,
        salt=derive("package salt", 24),
        private_key=private,
    )
    name = "signed" if signed else "vector"
    (folder / f"{name}-1.0.encrypted").write_bytes(whole)
    label_end = 18 + int.from_bytes(whole[14:18], "big")
    slot_at = label_end + (96 if signed else 0)
    header_bytes = slot_at + 2 + len(ARN) + len(wrapped)
    label_bytes = whole[18:label_end]
    # What `rekey` does: as long as the data key is the label's, the slot may say anything.
    rekeyed = [
        ("wrapped key replaced", header_bytes - 1, 1, "ff"),
        ("another KMS key", slot_at + 2 + len(ARN) - 1, 1, "65"),
    ]
    cases = _cases(whole, label_end, slot_at, header_bytes)
    if signed:
        cases += _signature_cases(whole, label_end, slot_at)
    else:
        cases.append(("bytes where a signature would be", 12, 2, "0060", "PackageFormatError"))
    description = {
        "file": f"{name}-1.0.encrypted",
        "data_key": key.hex(),
        "wrapped_key": wrapped.hex(),
        "header_bytes": header_bytes,
        "label_sha256": hashlib.sha256(label_bytes).hexdigest(),
        "context": plain.context_of(label_bytes).hex(),
        "kms_key_arn": ARN,
        "data_key_commitment": plain.data_key_commitment(key),
        "files": {
            path: {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "executable": executable,
            }
            for path, (data, executable) in FILES.items()
        },
        "rekeyed": [dict(zip(_KEYS[:4], case, strict=True)) for case in rekeyed],
        "invalid": [dict(zip(_KEYS, case, strict=True)) for case in cases],
    }
    if private is not None:
        public = private.public_key().public_bytes_raw()
        spki = bytes.fromhex("302a300506032b6570032100") + public
        digest = plain.body_digest(whole[header_bytes:])
        description |= {
            "private_key": derive("publisher key").hex(),
            "fingerprint": hashlib.sha256(spki).hexdigest(),
            "body_digest": digest.hex(),
            "signed_message": plain.signed_message("ed25519", label_bytes, digest).hex(),
            "signature": whole[label_end + 32 : slot_at].hex(),
        }
    _write_json(folder / ("signed_package.json" if signed else "package.json"), description)


def _cases(
    whole: bytes, label_end: int, slot_at: int, header_bytes: int
) -> list[tuple[str, int, int, str, str]]:
    commitment_at = whole.index(b'"data_key_commitment":"') + 23
    size, version_at = len(whole), whole.index(b'"1.0"') + 1
    signed = slot_at != label_end
    altered = "PackageSignatureError" if signed else "PackageTamperedError"
    return [
        ("magic altered", 0, 1, "88", "PackageFormatError"),
        ("version 2", 9, 1, "02", "PackageFormatError"),
        ("no key slot", 10, 2, "0000", "PackageFormatError"),
        ("key slot of 6403 bytes", 10, 2, "1903", "PackageFormatError"),
        ("no wrapped key", 10, 2, f"{2 + len(ARN):04x}", "PackageFormatError"),
        ("ARN longer than the key slot", slot_at, 2, "ffff", "PackageFormatError"),
        ("ARN altered to none", slot_at + 2, 1, "62", "PackageFormatError"),
        ("signature of 129 bytes", 12, 2, "0081", "PackageFormatError"),
        ("data key commitment altered", commitment_at, 1, "30", altered),
        ("data key commitment no hex", commitment_at, 1, "67", "PackageFormatError"),
        ("label of 256 KiB and a byte", 14, 4, "00040001", "PackageFormatError"),
        ("label not canonical", 18, 1, "7b20", "PackageFormatError"),
        ("version in the label altered", version_at, 1, "32", altered),
        ("salt altered", header_bytes, 1, "ff", "PackageTamperedError"),
        ("body altered", header_bytes + 60, 1, "ff", "PackageTamperedError"),
        ("byte appended", size, 0, "00", "PackageTamperedError"),
        ("empty file", 0, size, "", "PackageTruncatedError"),
        ("cut in the preamble", 10, size - 10, "", "PackageTruncatedError"),
        ("cut in the label", 100, size - 100, "", "PackageTruncatedError"),
        ("cut after the header", header_bytes, size - header_bytes, "", "PackageTruncatedError"),
        ("last byte missing", size - 1, 1, "", "PackageTruncatedError"),
    ]


def _signature_cases(
    whole: bytes, label_end: int, slot_at: int
) -> list[tuple[str, int, int, str, str]]:
    gone = b"\x00\x00" + whole[14:label_end]
    key_at = whole.index(b'"public_key":"') + 14
    kind = "PackageSignatureError"
    return [
        ("signature taken out", 12, slot_at - 12, gone.hex(), kind),
        ("signature a byte short", 12, 2, "005f", "PackageFormatError"),
        ("body digest altered", label_end, 1, "ff", kind),
        ("first byte of the signature altered", label_end + 32, 1, "ff", kind),
        ("last byte of the signature altered", slot_at - 1, 1, "ff", kind),
        ("public key altered", key_at + 86, 2, "3030", kind),
        ("algorithm of the public key altered", key_at + 14, 2, "3731", "PackageFormatError"),
    ]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "chunked_encryption.json", chunked_vectors())
    write_package_vectors(folder, signed=False)
    write_package_vectors(folder, signed=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(HERE / "package")
