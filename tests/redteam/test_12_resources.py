"""THREATS E.12: whatever a package or a notebook uses up, it uses up alone."""

import ast
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave_kernel.isolation.control_groups import ControlGroupError, ControlGroups, GroupLimits
from enclave_kernel.session.package_failures import EncryptedPackageError, VaultDiedError
from enclave_protocol.messages import EnclaveStatus, KernelLaunched, SignalKernel, StatusRequest
from tests.redteam import kernel_attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.redteam.places import PlainPlace, VaultPlace
from tests.support.enclave_home import run_code
from tests.support.supervisor_process import supervisor_process

pytestmark = needs_root

_MIB = 2**20
_LIMIT_MIB = 300


@contextmanager
def groups_of_vaults() -> Iterator[ControlGroups]:
    """Groups for vaults that may have 300 MiB and 64 tasks."""
    try:
        groups = ControlGroups(
            f"enclave-redteam-{os.getpid()}", GroupLimits(_LIMIT_MIB * _MIB, tasks=64)
        )
    except ControlGroupError as error:
        pytest.skip(str(error))
    try:
        yield groups
    finally:
        groups.close()


@contextmanager
def small_vault(arena: Arena) -> Iterator[VaultPlace]:
    """A vault that may have 300 MiB and 64 tasks."""
    with groups_of_vaults() as groups, arena.another_vault(groups) as place:
        yield place


def others_are_well(arena: Arena) -> bool:
    return bool(arena.vault.package.predict([1.0])[0] == 2.0)


def test_x01_fork_bomb(modern: Arena) -> None:
    assert modern.plain().run(kernel_attacks.fork_many, 200) == 200
    with small_vault(modern) as place:
        assert 0 < place.run(kernel_attacks.fork_many, 200) < 64
        assert others_are_well(modern)
    # Without control groups there is the limit of its user, who is nobody else.
    assert modern.plain().run(kernel_attacks.thread_many, 1100) == 1100
    assert 500 < modern.vault.run(kernel_attacks.thread_many, 1100) < 1024


def test_x02_memory_hog(modern: Arena) -> None:
    with small_vault(modern) as place:
        assert place.package.run("result = len(bytes(50 << 20))") == 50 * _MIB
        with pytest.raises(VaultDiedError, match=f"more than the {_LIMIT_MIB} MiB"):
            place.package.run("result = len(bytearray(b'x') * (400 << 20))")
    assert others_are_well(modern)


def test_x03_descriptors(modern: Arena) -> None:
    assert modern.plain().run(kernel_attacks.open_many, 5000) == 5000
    assert 3000 < modern.vault.run(kernel_attacks.open_many, 5000) < 4096
    assert others_are_well(modern)


def test_x04_files(modern: Arena) -> None:
    with tempfile.TemporaryDirectory(prefix="redteam-") as folder:
        assert modern.plain().run(kernel_attacks.fill_files, folder, 140_000) == 140_000
    with modern.another_vault() as place:
        assert place.run(kernel_attacks.fill_files, "/tmp", 140_000) < 131_072  # noqa: S108
    with small_vault(modern) as place:
        # Bytes count as its memory: either the file system is full, or the vault ends.
        try:
            written = place.run(kernel_attacks.fill_bytes, "/tmp", 400)  # noqa: S108
        except VaultDiedError as death:
            assert f"more than the {_LIMIT_MIB} MiB" in str(death)
        else:
            assert written < _LIMIT_MIB
    assert others_are_well(modern)


def shares(one: Callable[..., float], other: Callable[..., float]) -> float:
    """Run one process here and sixteen there; return how much more processor time these got."""
    start = time.monotonic() + 0.5
    with ThreadPoolExecutor(2) as pool:
        few = pool.submit(one, kernel_attacks.spin, 1, start, start + 1)
        many = pool.submit(other, kernel_attacks.spin, 16, start, start + 1)
        return many.result() / few.result()


def test_x05_processors(modern: Arena) -> None:
    """However many processes a vault has, another one computes as fast as they together."""
    plain = PlainPlace()
    assert shares(plain.run, plain.run) > 5
    with groups_of_vaults() as groups:
        if "cpu" not in groups.create("probe").controllers:
            pytest.skip("no control group for processors")
        with modern.two_vaults(groups) as (one, other):
            assert shares(one.run, other.run) < 3


def test_x06_memory_in_files_and_sockets(modern: Arena) -> None:
    assert modern.plain().run(kernel_attacks.fill_memory_files, 400) == 400
    with (
        small_vault(modern) as place,
        pytest.raises(VaultDiedError, match=f"more than the {_LIMIT_MIB} MiB"),
    ):
        place.run(kernel_attacks.fill_memory_files, 400)
    with small_vault(modern) as place:
        try:
            held = place.run(kernel_attacks.fill_socket_buffers, 5000)
        except VaultDiedError as death:
            assert f"more than the {_LIMIT_MIB} MiB" in str(death)
        else:
            assert held < _LIMIT_MIB * _MIB
    assert others_are_well(modern)


_NEVER_READS = """
from enclave_kernel import session_messages
from enclave_kernel.session_messages import VaultDeathRequest
from enclave_protocol.frame import encode_frame
sock = get_ipython().kernel.supervisor_link._sock
sock.setblocking(False)
frame = encode_frame(session_messages.encode(VaultDeathRequest(1, "0" * 16)))
sent = 0
try:
    for _ in range(200_000):
        sent += sock.send(frame * 64) > 0
except OSError as error:
    print(type(error).__name__)
"""


def test_x07_never_reads_its_replies() -> None:
    """The supervisor waits for no notebook: it answers others, and forgets this one."""
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as directory,
        supervisor_process(Path(directory)) as supervisor,
        supervisor.control() as control,
    ):
        request = supervisor.launch_request()
        assert isinstance(control.request(request), KernelLaunched)
        with supervisor.client(request) as client:
            reply = client.execute_interactive(_NEVER_READS, timeout=60)
            assert reply["content"]["status"] == "ok"
            assert isinstance(control.request(StatusRequest()), EnclaveStatus)
            assert resident(supervisor.pid) < 400 * _MIB
        control.request(SignalKernel(request.kernel_id, signal.SIGKILL))


_LOADS_THAT_FAIL = """
import time
from enclave_kernel.session.supervisor_link import LoadRefusedError
link = get_ipython().kernel.supervisor_link
began, at, kinds = time.monotonic(), [], set()
for header in headers:
    try:
        link.load("x.encrypted", header)
    except LoadRefusedError as refusal:
        kinds.add(refusal.kind)
    at.append(time.monotonic() - began)
print("\\n" + repr([at[29], at[-1], sorted(kinds)]))
"""


def test_x08_t12_a_loop_of_loads(modern: Arena) -> None:
    """Thirty at once are fine, then one a second: no storm on KMS, no crash for every guess.

    The headers are what the root process parses of a package: changed, cut, and no header at all.
    """
    good = modern.sealed.header_raw
    headers = [good[:size] for size in range(0, len(good), len(good) // 12)]
    headers += [good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :] for at in range(12)]
    headers += [good + b"x", bytes(100), b"\xff" * 65536, good[:16] + b"[" * 5000]
    headers += [b"x"] * (35 - len(headers))
    with modern.another_notebook() as place:
        shown = run_code(place.client, f"headers = {headers!r}\n{_LOADS_THAT_FAIL}", 60)
        burst, whole, kinds = ast.literal_eval(shown.splitlines()[-1])
    # Seconds that the burst itself took count: 35 take three in all, however they are spread.
    assert burst < 10 and whole > 2.8 and len(kinds) >= 2
    with modern.another_notebook() as place:
        assert run_code(place.client, "print(1)").strip() == "1"


_LARGE_FRAMES = """
sock = get_ipython().kernel.supervisor_link._sock
sock.setblocking(True)
sock.settimeout(20)
sent, ended = 0, ""
try:
    sock.sendall(head)
    for _ in range(400):
        sent += sock.send(bytes(2**20))
except OSError as error:
    ended = type(error).__name__
print(sent, ended)
"""


@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff", b"\x40\0\0\0", b"\0\0\0\1\xc1" * 50])
def test_x09_giant_and_many_frames(modern: Arena, head: bytes) -> None:
    """From a notebook to the root process: it ends that notebook's channel and takes no memory."""
    with modern.another_notebook() as place:
        before = resident(modern.supervisor.pid)
        sent, ended = run_code(place.client, f"head = {head!r}\n{_LARGE_FRAMES}", 60).split()
        assert int(sent) < 50 * _MIB and ended in ("BrokenPipeError", "ConnectionResetError")
        assert resident(modern.supervisor.pid) - before < 50 * _MIB
    with modern.supervisor.control() as control:
        assert isinstance(control.request(StatusRequest()), EnclaveStatus)


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_x10_out_of_memory_in_the_middle_of_a_call(modern: Arena) -> None:
    with small_vault(modern) as place:
        held = place.package.Model()
        code = "bytearray(b'x') * (400 << 20); result = 'partial'"
        with pytest.raises(VaultDiedError, match="has ended"):
            place.package.run(code)
        for call in (lambda: held.predict([1.0]), place.package.Model, lambda: held.bias):
            with pytest.raises(VaultDiedError, match="load it again"):
                call()
    assert others_are_well(modern)


def test_x11_no_user_twice(notebook: HostileNotebook) -> None:
    users = [notebook.value("m.vault_number()")]
    for _ in range(3):
        shown = notebook.cell("%load_encrypted marked.encrypted as again")
        assert not shown.error, shown.text
        users.append(notebook.value("again.vault_number()"))
        notebook.cell("%unload_encrypted again")
    assert len(set(users)) == len(users) and min(users) > 1_000_000


def test_what_is_used_up_comes_back(modern: Arena) -> None:
    """None of the above left its limit standing for the next one."""
    assert others_are_well(modern)
    with pytest.raises(EncryptedPackageError):
        modern.vault.package.fail("memory")
    assert others_are_well(modern)
