"""Makes this process a compiled program's, without exec: what execve does, done from inside.

Source: Linux, fs/binfmt_elf.c (`create_elf_tables`); System V ABI, processor supplements for AMD64
and for the Arm 64-bit architecture, "Process Initialization"; ld.so(8);
docs/decisions/programs_without_exec.md.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Final, NoReturn

from enclave_kernel.vault.line_buffers import LINE_BUFFERS, LINE_BUFFERS_ENVIRON
from enclave_kernel.vault.program_file import ProgramFile, read_program_file
from enclave_kernel.vault.program_memory import (
    MappedProgram,
    map_anonymous,
    map_program,
    page_end,
    protect,
)
from enclave_protocol.elf_header import ProgramError

__all__ = ["Program", "find_program", "start_program"]


_CODE: Final = {
    # mov rsp,rdx; mov dword [rsp-8],0x1f80; ldmxcsr [rsp-8]; fninit; mov r12,rsi; mov r13,rdi
    # next: mov rdi,[r13]; test rdi,rdi; jz start; mov rsi,[r13+8]; mov rdx,rsi
    #       mov r10d,MREMAP_MAYMOVE|MREMAP_FIXED; mov r8,[r13+16]; mov eax,SYS_mremap; syscall
    #       cmp rax,[r13+16]; jne fail; add r13,24; jmp next
    # start: xor edx,edx; xor ebp,ebp; jmp r12
    # fail: mov edi,126; mov eax,SYS_exit_group; syscall
    "x86_64": bytes.fromhex(
        "4889d4 c74424f8801f0000 0fae5424f8 dbe3 4989f4 4989fd"
        "498b7d00 4885ff 7424 498b7508 4889f2"
        "41ba03000000 4d8b4510 b819000000 0f05"
        "493b4510 750d 4983c518 ebd3"
        "31d2 31ed 41ffe4"
        "bf7e000000 b8e7000000 0f05"
    ),
    # mov sp,x2; msr fpcr,xzr; msr fpsr,xzr; mov x19,x0; mov x20,x1
    # next: ldp x0,x1,[x19]; cbz x0,start; mov x2,x1; mov x3,#3; ldr x4,[x19,#16]
    #       mov x8,#216; svc #0; ldr x4,[x19,#16]; cmp x0,x4; b.ne fail; add x19,x19,#24; b next
    # start: mov x0,#0; mov x29,#0; mov x30,#0; br x20
    # fail: mov x0,#126; mov x8,#94; svc #0
    "aarch64": struct.pack(
        "<24I",
        *(0x9100005F, 0xD51B441F, 0xD51B443F, 0xAA0003F3, 0xAA0103F4),
        *(0xA9400660, 0xB4000160, 0xAA0103E2, 0xD2800063, 0xF9400A64),
        *(0xD2801B08, 0xD4000001, 0xF9400A64, 0xEB04001F, 0x540000E1, 0x91006273, 0x17FFFFF5),
        *(0xD2800000, 0xD280001D, 0xD280001E, 0xD61F0280),
        *(0xD2800FC0, 0xD2800BC8, 0xD4000001),
    ),
}
"""start(moves, entry, stack): takes the stack, sets floating-point arithmetic as a process begins
with, does the moves, and jumps. It touches no memory but its own pages and the stack, as what else
there was may be gone."""
_STACK_BYTES: Final = 8 << 20
"""What a limit of stacks is on most machines; also the most that is taken here."""
_AT_NULL, _AT_PHDR, _AT_PHENT, _AT_PHNUM, _AT_PAGESZ, _AT_BASE, _AT_FLAGS = 0, 3, 4, 5, 6, 7, 8
_AT_ENTRY, _AT_UID, _AT_EUID, _AT_GID, _AT_EGID, _AT_PLATFORM, _AT_HWCAP = 9, 11, 12, 13, 14, 15, 16
_AT_CLKTCK, _AT_SECURE, _AT_RANDOM, _AT_HWCAP2, _AT_EXECFN = 17, 23, 25, 26, 31
_AT_SYSINFO_EHDR, _AT_MINSIGSTKSZ = 33, 51
_OF_THE_KERNEL: Final = (_AT_HWCAP, _AT_HWCAP2, _AT_CLKTCK, _AT_SYSINFO_EHDR, _AT_MINSIGSTKSZ)
_RANDOM_BYTES: Final = 16
_STACK_ALIGNMENT: Final = 16
_MAP_STACK: Final = 0x20000 | 0x4000 | 0x100
"""And MAP_NORESERVE: most of it is never used; and MAP_GROWSDOWN: the kernel keeps a megabyte free
below it, which what is allocated on a stack does not step over unseen."""
_GNU_LOADER: Final = "ld-linux"
_SS_DISABLE: Final = 2


@dataclass(frozen=True)
class Program:
    """A program that can be started.

    Attributes:
        path: What is mapped: the program itself, or the loader that it names, which maps it then.
        file: What that says of itself.
        prefix: What comes before the arguments, for the loader.
        environ: Variables for what the loader loads besides.
    """

    path: str
    file: ProgramFile
    prefix: tuple[str, ...]
    environ: Mapping[str, str]


def find_program(path: str, name: str) -> Program:
    """Return how to start the program at `path`; nothing is started.

    Args:
        path: Its file.
        name: What messages call it, and what it will call itself.

    Raises:
        ProgramError: It is no program, or not one for this processor, or the loader that it names
            is not here; or it cannot be read.
    """
    try:
        program = read_program_file(path)
        loader = program.interpreter
        if not loader:
            return Program(path, program, (), {})
        if not Path(loader).is_file():
            shown = ascii(Path(loader).name)
            raise ProgramError(f"needs the loader {shown}, which the image does not have")
        file = read_program_file(loader)
    except ProgramError as error:
        raise ProgramError(f"{name}: {error.reason}") from None
    except OSError as error:
        raise ProgramError(f"{name}: cannot be read: {error.strerror}") from None
    if not Path(loader).name.startswith(_GNU_LOADER):
        return Program(loader, file, (loader, "--argv0", name, path), {})
    prefix = (loader, "--argv0", name)
    if not Path(LINE_BUFFERS).exists():
        return Program(loader, file, (*prefix, path), {})
    return Program(loader, file, (*prefix, "--preload", LINE_BUFFERS, path), LINE_BUFFERS_ENVIRON)


def start_program(program: Program, arguments: Sequence[str]) -> NoReturn:
    """Be the program, in a process with one thread, which is a fork of another.

    Its environment is this process's. Open descriptors, working directory and identity stay;
    signals get their default actions, as with exec.

    Args:
        program: Of `find_program`.
        arguments: Its `argv`, the name first.

    Raises:
        OSError: There is not enough memory, or nothing may be run from where the file is.
    """
    # First: who interrupts it now interrupts the program.
    _default_signals()
    mapped = map_program(program.path, program.file)
    argv = [*program.prefix, *arguments[1:]] if program.prefix else [*arguments]
    environ = {**os.environ, **program.environ}
    stack = _make_stack(argv, environ, _auxiliary(program, mapped), program)
    code = _CODE[os.uname().machine]
    code += bytes(-len(code) % 8)
    moves = [(move.source, move.size, move.target) for move in mapped.moves]
    table = struct.pack(f"={3 * len(moves) + 3}Q", *chain(*moves, (0, 0, 0)))
    size = page_end(len(code) + len(table))
    address = map_anonymous(size, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.memmove(address, code + table, len(code) + len(table))
    # Not before: on Arm this is also what makes the processor see the instructions.
    protect(address, size, mmap.PROT_READ | mmap.PROT_EXEC)
    start = ctypes.CFUNCTYPE(None, *(3 * [ctypes.c_void_p]))(address)
    start(address + len(code), mapped.base + program.file.header.entry, stack)
    raise AssertionError("a program does not come back")


def _auxiliary(program: Program, mapped: MappedProgram) -> list[tuple[int, int]]:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    header = program.file.header
    return [
        (_AT_PHDR, mapped.base + program.file.table_address),
        (_AT_PHENT, header.table_bytes // header.table_count),
        (_AT_PHNUM, header.table_count),
        (_AT_PAGESZ, mmap.PAGESIZE),
        (_AT_BASE, 0),
        (_AT_FLAGS, 0),
        (_AT_ENTRY, mapped.base + header.entry),
        (_AT_UID, os.getuid()),
        (_AT_EUID, os.geteuid()),
        (_AT_GID, os.getgid()),
        (_AT_EGID, os.getegid()),
        (_AT_SECURE, 0),
        *((kind, value) for kind in _OF_THE_KERNEL if (value := libc.getauxval(kind))),
    ]


def _make_stack(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    auxiliary: list[tuple[int, int]],
    program: Program,
) -> int:
    """Map a stack with what a program finds on it; return its pointer."""
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    size = _STACK_BYTES if limit < 0 else min(_STACK_BYTES, limit)
    size -= size % mmap.PAGESIZE
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if program.file.executable_stack:
        protection |= mmap.PROT_EXEC
    bottom = map_anonymous(size, protection, flags=_MAP_STACK)
    texts = [os.fsencode(text) + b"\0" for text in arguments]
    texts += [os.fsencode(f"{name}={value}") + b"\0" for name, value in environ.items()]
    texts += [os.fsencode(program.path) + b"\0", os.uname().machine.encode() + b"\0"]
    texts.append(os.urandom(_RANDOM_BYTES))
    place = bottom + size - sum(map(len, texts))
    content = b"".join(texts)
    if len(content) > size // 4:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    places = list(accumulate((len(text) for text in texts), initial=place))
    argv, rest = places[: len(arguments)], places[len(arguments) :]
    envp, (name, platform, random, _) = rest[: len(environ)], rest[len(environ) :]
    words = [len(argv), *argv, 0, *envp, 0]
    pairs = (*auxiliary, (_AT_EXECFN, name), (_AT_PLATFORM, platform), (_AT_RANDOM, random))
    words += [word for pair in (*pairs, (_AT_NULL, 0)) for word in pair]
    pointer = (place - 8 * len(words)) & -_STACK_ALIGNMENT
    ctypes.memmove(place, content, len(content))
    packed = struct.pack(f"={len(words)}Q", *words)
    ctypes.memmove(pointer, packed, len(packed))
    return pointer


def _default_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # Its memory is the interpreter's; no program expects one.
    disabled = struct.pack("@PiN", 0, _SS_DISABLE, 0)
    ctypes.CDLL(None).sigaltstack(ctypes.create_string_buffer(disabled), None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
