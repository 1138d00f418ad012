"""Sealed memory between two processes: what arrives, and every descriptor that is none of it."""

import array
import contextlib
import fcntl
import mmap
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enclave_kernel import call_channel
from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.sealed_memory import read_sealed, write_sealed
from enclave_protocol.vault_messages import (
    Release,
    Result,
    VaultMessageError,
    decode_vault_message,
    encode_call_head,
)

SIZE = 128
HEAD = encode_call_head(Result(1, b"v"), (memoryview(bytes(SIZE)),), sealed=True)
PLAIN = encode_call_head(Result(1, b"v"))
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        # The listing's own descriptor is among them, and gone.
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return sorted(found)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, CallChannel]]:
    hostile, receiving = socket.socketpair()
    channel = CallChannel(receiving)
    yield hostile, channel
    channel.close()
    hostile.close()


def send_with(sock: socket.socket, data: bytes, rights: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))])


def memfd(size: int = SIZE, seals: int = SEALS, flags: int = os.MFD_ALLOW_SEALING) -> int:
    descriptor = os.memfd_create("test", flags)
    os.write(descriptor, b"x" * size)
    if flags & os.MFD_ALLOW_SEALING:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def regular_file() -> int:
    descriptor, name = tempfile.mkstemp()
    Path(name).unlink()
    os.write(descriptor, bytes(SIZE))
    return descriptor


def tmpfs_file() -> int:
    # On Linux 4.14 such a file answers F_GET_SEALS with F_SEAL_SEAL.
    descriptor, name = tempfile.mkstemp(dir="/dev/shm")
    Path(name).unlink()
    os.write(descriptor, bytes(SIZE))
    return descriptor


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def reopened(flags: int) -> int:
    descriptor = memfd()
    try:
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    finally:
        os.close(descriptor)


HOSTILE: dict[str, Callable[[], int]] = {
    "M-01 unsealed": lambda: memfd(seals=0),
    "M-01 sealed but writable": lambda: memfd(seals=SEALS & ~fcntl.F_SEAL_WRITE),
    "M-01 seals not sealed": lambda: memfd(seals=SEALS & ~fcntl.F_SEAL_SEAL),
    "M-03 can be shortened": lambda: memfd(seals=SEALS & ~fcntl.F_SEAL_SHRINK),
    "M-03 too short": lambda: memfd(size=SIZE - 1),
    "M-03 empty": lambda: memfd(size=0),
    "M-10 too long": lambda: memfd(size=SIZE + 1),
    "M-04 no sealing": lambda: memfd(flags=0),
    "M-04 file": regular_file,
    "M-04 file in memory": tmpfs_file,
    "M-04 pipe": pipe,
    "M-04 O_PATH": lambda: reopened(os.O_PATH),
    "M-04 memory of a process": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "M-04 device": lambda: os.open("/dev/zero", os.O_RDWR),
    "M-07 directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "M-07 socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "M-08 event counter": lambda: os.eventfd(0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_other_descriptor_is_refused_and_closed(
    name: str, ends: tuple[socket.socket, CallChannel]
) -> None:
    hostile, channel = ends
    before = descriptors()
    descriptor = HOSTILE[name]()
    send_with(hostile, HEAD, [descriptor])
    os.close(descriptor)
    with pytest.raises(VaultMessageError, match="sealed memory"):
        channel.receive()
    assert descriptors() == before


@pytest.mark.parametrize("number", [2, 200])
@pytest.mark.parametrize("head", [HEAD, PLAIN])
def test_several_descriptors_are_refused_and_closed(
    number: int, head: bytes, ends: tuple[socket.socket, CallChannel]
) -> None:
    hostile, channel = ends
    before = descriptors()
    descriptor = memfd()
    send_with(hostile, head, [descriptor] * number)
    os.close(descriptor)
    with pytest.raises(VaultMessageError, match="more than one"):
        channel.receive()
    assert descriptors() == before


def test_a_second_descriptor_for_one_frame_is_refused(
    ends: tuple[socket.socket, CallChannel],
) -> None:
    hostile, channel = ends
    before = descriptors()
    descriptor = memfd()
    send_with(hostile, HEAD[:5], [descriptor])
    send_with(hostile, HEAD[5:], [descriptor])
    os.close(descriptor)
    with pytest.raises(VaultMessageError, match="more than one"):
        channel.receive()
    assert descriptors() == before


def test_a_descriptor_nobody_announced_is_refused(
    ends: tuple[socket.socket, CallChannel],
) -> None:
    hostile, channel = ends
    before = descriptors()
    descriptor = memfd()
    send_with(hostile, PLAIN, [descriptor])
    with pytest.raises(VaultMessageError, match="not announced"):
        channel.receive()
    inline = encode_call_head(Result(1, b""), (memoryview(bytes(9)),))
    hostile.sendall(inline)
    send_with(hostile, bytes(9), [descriptor])
    with pytest.raises(VaultMessageError, match="not announced"):
        channel.receive()
    os.close(descriptor)
    assert descriptors() == before


def test_an_announced_descriptor_must_come(ends: tuple[socket.socket, CallChannel]) -> None:
    hostile, channel = ends
    hostile.sendall(HEAD)
    with pytest.raises(VaultMessageError, match="did not come"):
        channel.receive()


def test_a_descriptor_may_arrive_with_the_frame_before(
    ends: tuple[socket.socket, CallChannel],
) -> None:
    hostile, channel = ends
    hostile.sendall(encode_call_head(Release((1,))))
    descriptor = write_sealed([memoryview(b"y" * SIZE)])
    send_with(hostile, HEAD, [descriptor])
    os.close(descriptor)
    channel.receive()
    message, (buffer,) = channel.receive()
    assert decode_vault_message(message) == Result(1, b"v")
    assert bytes(buffer) == b"y" * SIZE


def test_closing_a_channel_closes_a_descriptor_that_waits() -> None:
    before = descriptors()
    hostile, receiving = socket.socketpair()
    channel = CallChannel(receiving)
    descriptor = memfd()
    send_with(hostile, HEAD[:-1], [descriptor])
    os.close(descriptor)
    hostile.close()
    with pytest.raises(ChannelClosedError):
        channel.receive()
    channel.close()
    assert descriptors() == before


def test_what_a_receiver_writes_stays_with_it_and_nobody_can_change_what_it_reads() -> None:
    parts = [memoryview(b"a" * 100), memoryview(b""), memoryview(b"b" * 5000)]
    descriptor = write_sealed(parts)
    first = read_sealed(descriptor, [100, 0, 5000])
    second = read_sealed(descriptor, [100, 0, 5000])
    assert [bytes(part) for part in first] == [bytes(part) for part in parts]
    first[2][:] = b"c" * 5000
    assert bytes(second[2]) == b"b" * 5000
    for change in (
        lambda: os.pwrite(descriptor, b"x", 0),
        lambda: os.ftruncate(descriptor, 1),
        lambda: os.ftruncate(descriptor, 1 << 20),
        lambda: mmap.mmap(descriptor, 100, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        with pytest.raises(OSError, match="not permitted"):
            change()
    os.close(descriptor)
    # The gaps between the parts hold nothing.
    assert bytes(first[0].obj)[100:128] == bytes(28)


def test_a_writer_that_keeps_its_mapping_cannot_seal() -> None:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(descriptor, bytes(4096))
    with mmap.mmap(descriptor, 4096), pytest.raises(OSError, match="busy"):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    os.close(descriptor)


LARGE = 4 * 2**20


@pytest.fixture
def sealed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a memfd made for less than the gigabytes that it is meant for."""
    monkeypatch.setattr(call_channel, "SEALED_BYTES", LARGE)


@pytest.mark.usefixtures("sealed_early")
def test_large_buffers_travel_sealed_and_without_descriptors_in_the_stream() -> None:
    left, right = (CallChannel(sock) for sock in socket.socketpair())
    before = descriptors()
    large = memoryview(bytearray(LARGE))
    large[5] = 7
    # Nobody reads yet: in the stream this would not fit.
    left.send(Result(1, b"v"), (memoryview(b"small"), large))
    _, (small, received) = right.receive()
    assert bytes(small) == b"small" and received == large and not received.readonly
    received[6] = 8
    del small, received
    assert descriptors() == before
    left.close()
    right.close()


@pytest.mark.usefixtures("sealed_early")
def test_without_descriptors_to_spare_the_stream_takes_the_buffers() -> None:
    left, right = (CallChannel(sock) for sock in socket.socketpair())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    received: list[int] = []
    thread = threading.Thread(target=lambda: received.append(len(right.receive()[1][0])))
    thread.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        left.send(Result(1, b"v"), (memoryview(bytearray(LARGE)),))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    thread.join()
    assert received == [LARGE]
    left.close()
    right.close()
