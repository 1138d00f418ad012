"""Compiled code in a package: whether its manifest says so, and whether its programs are some."""

from collections.abc import Mapping

from enclave_encryption.errors import SourceTreeError
from enclave_encryption.source_tree import SourceFile, SourceTree
from enclave_protocol.compiled_code import HEAD_BYTES, is_compiled_head, is_compiled_name
from enclave_protocol.elf_header import ELF_HEADER_BYTES, ProgramError, read_elf_header
from enclave_protocol.manifest import MANIFEST_NAME, Manifest, Script

__all__ = ["check_compiled", "check_programs"]


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


def check_programs(scripts: Mapping[str, Script], tree: SourceTree) -> None:
    """Refuse scripts that are neither Python nor programs for the processor of an enclave.

    Raises:
        SourceTreeError: There are some; names every file.
    """
    files = {file.entry.path: file for file in tree.files}
    problems = []
    for script in scripts.values():
        if script.is_program:
            try:
                read_elf_header(_head(tree, files[script.file], ELF_HEADER_BYTES))
            except ProgramError as error:
                problems.append(f"{script.file}: {error.reason}")
    if problems:
        raise SourceTreeError(problems)


def _is_compiled(tree: SourceTree, file: SourceFile) -> bool:
    return is_compiled_name(file.entry.path) or is_compiled_head(_head(tree, file, HEAD_BYTES))


def _head(tree: SourceTree, file: SourceFile, count: int) -> bytes:
    return bytes(next(tree.read(file, memoryview(bytearray(count))), b""))
