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


def label() -> dict[str, Any]:
    return {
        "package": {
            "name": "vector",
            "version": "1.0",
            "description": "Grüße",
            "module": "vector",
            "publisher": "",
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


def write_package_vectors(folder: Path) -> None:
    key, wrapped = derive("package key"), b"wrapped:" + derive("wrapped")
    salt = derive("package salt", 24)
    whole = plain.make_package(label(), FILES, key=key, arn=ARN, wrapped_key=wrapped, salt=salt)
    (folder / "vector-1.0.encrypted").write_bytes(whole)
    slot_at = 16 + int.from_bytes(whole[12:16], "big")
    header_bytes = slot_at + 2 + len(ARN) + len(wrapped)
    commitment_at = whole.index(b'"data_key_commitment":"') + 23
    size, version_at = len(whole), whole.index(b'"1.0"') + 1
    cases: list[tuple[str, int, int, str, str]] = [
        ("magic altered", 0, 1, "88", "PackageFormatError"),
        ("version 2", 9, 1, "02", "PackageFormatError"),
        ("no key slot", 10, 2, "0000", "PackageFormatError"),
        ("key slot of 6403 bytes", 10, 2, "1903", "PackageFormatError"),
        ("no wrapped key", 10, 2, f"{2 + len(ARN):04x}", "PackageFormatError"),
        ("ARN longer than the key slot", slot_at, 2, "ffff", "PackageFormatError"),
        ("ARN altered to none", slot_at + 2, 1, "62", "PackageFormatError"),
        ("data key commitment altered", commitment_at, 1, "30", "PackageTamperedError"),
        ("data key commitment no hex", commitment_at, 1, "67", "PackageFormatError"),
        ("label of 256 KiB and a byte", 12, 4, "00040001", "PackageFormatError"),
        ("label not canonical", 16, 1, "7b20", "PackageFormatError"),
        (
            "version in the label altered",
            version_at,
            1,
            "32",
            "PackageTamperedError",
        ),
        ("salt altered", header_bytes, 1, "ff", "PackageTamperedError"),
        ("body altered", header_bytes + 60, 1, "ff", "PackageTamperedError"),
        ("byte appended", len(whole), 0, "00", "PackageTamperedError"),
        ("empty file", 0, len(whole), "", "PackageTruncatedError"),
        ("cut in the preamble", 10, len(whole) - 10, "", "PackageTruncatedError"),
        ("cut in the label", 100, len(whole) - 100, "", "PackageTruncatedError"),
        (
            "cut after the header",
            header_bytes,
            size - header_bytes,
            "",
            "PackageTruncatedError",
        ),
        ("last byte missing", len(whole) - 1, 1, "", "PackageTruncatedError"),
    ]
    keys = ("name", "offset", "removed", "inserted", "error")
    # What `rekey` does: as long as the data key is the label's, the slot may say anything.
    rekeyed = [
        ("wrapped key replaced", header_bytes - 1, 1, "ff"),
        ("another KMS key", slot_at + 2 + len(ARN) - 1, 1, "65"),
    ]
    description = {
        "file": "vector-1.0.encrypted",
        "data_key": key.hex(),
        "wrapped_key": wrapped.hex(),
        "header_bytes": header_bytes,
        "label_sha256": hashlib.sha256(
            plain.encode_label(json.loads(whole[16:slot_at]))
        ).hexdigest(),
        "context": plain.context_of(whole[16:slot_at]).hex(),
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
        "rekeyed": [dict(zip(keys[:4], case, strict=True)) for case in rekeyed],
        "invalid": [dict(zip(keys, case, strict=True)) for case in cases],
    }
    _write_json(folder / "package.json", description)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "chunked_encryption.json", chunked_vectors())
    write_package_vectors(folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(HERE / "package")
