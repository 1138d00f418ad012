"""THREATS E.7: descriptors sent to a real vault. None but sealed memory is looked at."""

import array
import fcntl
import mmap
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enclave_kernel import call_channel
from enclave_kernel.sealed_memory import write_sealed
from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import encode_arguments
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.places import achieved

pytestmark = needs_root

_ARGUMENTS = encode_arguments((np.ones(1024),), {})
_SIZE = sum(map(len, _ARGUMENTS.buffers))
_ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def memory(seals: int = _ALL, size: int = _SIZE, flags: int = os.MFD_ALLOW_SEALING) -> int:
    descriptor = os.memfd_create("redteam", flags)
    os.truncate(descriptor, size)
    if flags:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def a_pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


_FILES: dict[str, Callable[[], int]] = {
    "m01 not sealed": lambda: memory(0),
    "m01 writable": lambda: memory(_ALL & ~fcntl.F_SEAL_WRITE),
    "m01 more seals may come": lambda: memory(_ALL & ~fcntl.F_SEAL_SEAL),
    "m03 may shrink": lambda: memory(_ALL & ~fcntl.F_SEAL_SHRINK),
    "m03 too short": lambda: memory(size=_SIZE - 64),
    "m04 file": lambda: os.open(__file__, os.O_RDONLY),
    "m04 pipe": a_pipe,
    "m04 folder": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "m04 path only": lambda: os.open("/", os.O_PATH),
    "m04 own memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "m04 zeros": lambda: os.open("/dev/zero", os.O_RDWR),
    "m04 no sealing": lambda: memory(flags=0),
    "m07 home": lambda: os.open("/root", os.O_RDONLY | os.O_DIRECTORY),
    "m07 socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "m07 namespace": lambda: os.open("/proc/self/ns/net", os.O_RDONLY),
    "m10 too long": lambda: memory(size=_SIZE + 4096),
}


def send(sock: socket.socket, data: bytes, descriptors: list[int]) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    sock.sendmsg([data], [rights])


def head(number: int = 1) -> bytes:
    call = vm.Call(number, "predict", _ARGUMENTS.header)
    return vm.encode_call_head(call, _ARGUMENTS.buffers, sealed=True)


def descriptors_of(pid: int) -> list[str]:
    return sorted(str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())


def ended(sock: socket.socket) -> bytes:
    """Return what came until the vault closed its end."""
    data = b""
    sock.settimeout(60)
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_sealed_memory_passes(modern: Arena) -> None:
    """The control: the same frame with sealed memory of the right size is a call."""
    channel = modern.loaded.client._channel
    descriptor = write_sealed(_ARGUMENTS.buffers)
    send(channel._sock, head(), [descriptor])
    os.close(descriptor)
    assert isinstance(vm.decode_vault_message(channel.receive()[0]), vm.Result)
    links = descriptors_of(modern.payload_pid)
    assert len(links) == 4 and sum(link.startswith("socket:") for link in links) == 1


@pytest.mark.parametrize("name", _FILES)
def test_m01_m03_m04_m07_m10_what_is_no_sealed_memory(modern: Arena, name: str) -> None:
    with modern.another_vault() as place:
        sock = place.package._client._channel._sock
        descriptor = _FILES[name]()
        send(sock, head(), [descriptor])
        assert ended(sock) == b""  # not a call was made, and the vault is gone
        os.close(descriptor)


def test_m02_sealed_while_somebody_maps_it(modern: Arena) -> None:
    descriptor = os.memfd_create("redteam", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, _SIZE)
    with mmap.mmap(descriptor, _SIZE) as mapped:
        mapped[0] = 1
        with pytest.raises(OSError, match="busy"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(descriptor)


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process send everything from 1 MiB on in sealed memory, as else from 2 GiB on."""
    monkeypatch.setattr(call_channel, "SEALED_BYTES", 2**20)


@pytest.mark.usefixtures("sealed")
def test_m05_mapped_privately(modern: Arena) -> None:
    """What the vault writes into its arguments is its own, and nobody else's ever changes."""
    given = np.ones(2**20)
    before = given.copy()
    assert modern.vault.package.predict(given)[0] == 2.0
    assert np.array_equal(given, before)


def test_m06_a_flood_of_descriptors(modern: Arena) -> None:
    with modern.another_vault() as place:
        sock = place.package._client._channel._sock
        many = [memory() for _ in range(200)]
        send(sock, head(), many)
        assert ended(sock) == b""
        for descriptor in many:
            os.close(descriptor)
    with modern.another_vault() as place:
        # On a frame that announced none.
        sock = place.package._client._channel._sock
        plain = vm.encode_call_head(vm.Call(1, "best", encode_arguments((), {}).header))
        descriptor = memory()
        send(sock, plain, [descriptor])
        os.close(descriptor)
        assert ended(sock) == b""


def test_m08_sockets_in_sockets(modern: Arena) -> None:
    """What is in flight counts as the sender's own: it runs into its limit, nobody else does."""
    assert achieved(modern.plain().run(attacks.pass_descriptors, 100)) == {"in flight"}
    with modern.another_vault() as place:
        outcome = place.run(attacks.pass_descriptors, 20_000)
        assert outcome["in flight"] in ("ETOOMANYREFS", "EMFILE", "EAGAIN")
    assert modern.vault.package.predict([1.0])[0] == 2.0


@pytest.mark.usefixtures("sealed")
def test_m09_memory_that_was_passed(modern: Arena) -> None:
    """It is the sender's: what a vault was passed it keeps neither open nor mapped after the call.

    That a sender's own limit counts what it makes is X-06.
    """
    given = np.ones(2**20)
    for _ in range(4):
        assert modern.vault.package.predict(given)[0] == 2.0
    assert not [link for link in descriptors_of(modern.payload_pid) if "memfd" in link]
    maps = Path(f"/proc/{modern.payload_pid}/maps").read_text()
    assert "memfd:" not in maps
    # The control: while the package holds on to it, it is there to be seen.
    keep = "import marked, numpy as np\nold = marked.np.asarray\n"
    keep += "marked.np.asarray = lambda x, *a: (setattr(marked, 'kept', x), old(x, *a))[1]"
    with modern.another_vault() as place:
        place.package.run(keep)
        place.package.predict(given)
        code = "result = 'memfd:' in open('/proc/self/maps').read()"
        assert place.package.run(code) is True


def test_m11_identity_is_the_end_of_the_pair(modern: Arena) -> None:
    """SO_PEERCRED shows who made a socketpair: the vault sees root, and nothing follows from it."""
    code = """
import gc, socket, struct
from enclave_kernel.call_channel import CallChannel
(channel,) = [thing for thing in gc.get_objects() if type(thing) is CallChannel]
try:
    raw = channel._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    result = struct.unpack("=iii", raw)
except OSError as error:
    result = error.errno
"""
    seen = modern.vault.package.run(code)
    assert seen in (1, 92) or (type(seen) is tuple and seen[1] == os.getuid())


@pytest.mark.usefixtures("sealed")
def test_two_threads_send_at_once(modern: Arena) -> None:
    """Large arguments from many threads: no descriptor is mistaken for another's."""
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(5):
            given = np.full(2**20, number * 10.0 + turn)
            if not np.array_equal(modern.vault.package.predict(given), given * 2):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
