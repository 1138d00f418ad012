"""The fuzz target of workspace streams."""

import contextlib
from pathlib import PurePosixPath

from enclave_protocol.workspace.messages import (
    Batch,
    Changed,
    Data,
    Entry,
    FromEnclave,
    FromParent,
    Listing,
    MakeFolder,
    Put,
    Read,
    Scan,
    Signature,
    Skipped,
    WorkspaceError,
    decode_from_enclave,
    decode_from_parent,
    encode_into,
)
from enclave_protocol.workspace.names import NameRefusedError, check_rel

__all__ = ["workspace", "workspace_seeds"]


def workspace(data: bytes) -> None:
    """One message of a workspace stream, from either end; a name in it leads nowhere else."""
    for decode in (decode_from_parent, decode_from_enclave):
        with contextlib.suppress(WorkspaceError):
            message = decode(data)
            names = [rel for rel, _ in message.entries] if isinstance(message, Listing) else []
            names += message.rels if isinstance(message, Changed) else ()
            for rel in names:
                _walk_name(rel)


def _walk_name(rel: str) -> None:
    with contextlib.suppress(NameRefusedError):
        path = PurePosixPath("/root", check_rel(rel))
        if ".." in path.parts or not path.is_relative_to("/root") or len(path.parts) < 3:
            raise AssertionError(f"{rel!r} leads out of the root")


def workspace_seeds() -> list[bytes]:
    """Return messages of both ends."""
    entry = Entry("file", 3, 1_600_000_000_000_000_000, 0o644, 7)
    signature = Signature(65536, bytes(64))
    steps = (Put("a/b", entry, None, memoryview(b"abc")), MakeFolder("a", 0o755))
    messages: list[FromParent | FromEnclave] = [
        *(Scan(("", "a/b")), Read("a/b", entry, signature), Batch(steps)),
        *(Listing((("../x", entry), ("a/b", entry)), (Skipped("l", "link"),), False), signature),
        *(Changed(1, ("a/b", "a\\b"), ("a/b",)), Data(5, memoryview(b"bytes"))),
    ]
    seeds = []
    for message in messages:
        buffer = bytearray()
        encode_into(message, buffer, 0)
        seeds.append(bytes(buffer))
    return seeds
