"""Compiled code in a package whose manifest does not say so."""

from enclave_encryption.errors import SourceTreeError
from enclave_encryption.source_tree import SourceFile, SourceTree
from enclave_protocol.compiled_code import HEAD_BYTES, is_compiled_head, is_compiled_name
from enclave_protocol.manifest import MANIFEST_NAME, Manifest

__all__ = ["check_compiled"]


def check_compiled(tree: SourceTree, manifest: Manifest) -> None:
    """Refuse what no vault would take: compiled code without `[policy] native = true`.

    Raises:
        SourceTreeError: There is some; names every file.
    """
    if manifest.policy.native:
        return
    found = [file.entry.path for file in tree.files if _is_compiled(tree, file)]
    if found:
        raise SourceTreeError(
            [
                f"{path}: is compiled code: set native = true in [policy] of {MANIFEST_NAME}, or "
                "leave it out"
                for path in found
            ]
        )


def _is_compiled(tree: SourceTree, file: SourceFile) -> bool:
    if is_compiled_name(file.entry.path):
        return True
    first = next(tree.read(file, memoryview(bytearray(HEAD_BYTES))), b"")
    return is_compiled_head(bytes(first))
