"""The enclave's end in a real supervisor: who serves the workspace, what notebooks see of it."""

import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from enclave_parent_gateway.sync.remote_tree import RemoteTree
from enclave_protocol.messages import PROTOCOL_VERSION, OpenWorkspace
from enclave_protocol.workspace.messages import (
    WORKSPACE_VERSION,
    Entry,
    Hello,
    MakeFolder,
    Put,
    decode_from_enclave,
)
from enclave_protocol.workspace.stream import MessageStream, StreamEndedError
from tests.support.enclave_home import run_code, wait_until
from tests.support.supervisor_process import (
    Refused,
    SupervisorProcess,
    hangs_up,
    supervisor_process,
)
from tests.support.workspace_stream import workspace_stream

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="walls need a root supervisor")


@pytest.fixture(scope="module")
def supervisor() -> Iterator[SupervisorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as folder,
        supervisor_process(Path(folder)) as process,
    ):
        Path(folder).chmod(0o711)
        yield process


@contextmanager
def workspace(supervisor: SupervisorProcess) -> Iterator[RemoteTree]:
    with workspace_stream(supervisor) as sock:
        yield RemoteTree(MessageStream(sock, decode_from_enclave))


def put(tree: RemoteTree, rel: str, data: bytes, mode: int = 0o644) -> Entry:
    expect = tree.scan([rel])[0].get(rel)
    entry = Entry("file", len(data), 1_600_000_000_000_000_000, mode)
    made = tree.do(Put(rel, entry, expect, memoryview(data)))
    assert made is not None
    return made


@contextmanager
def confirming(tree: RemoteTree) -> Iterator[None]:
    """Confirm what the enclave tells of, and do nothing else, until the block ends."""
    stop, stopped = socket.socketpair()

    def confirm() -> None:
        number = stopped.fileno()
        while True:
            while tree.events:
                tree.confirm(tree.events.popleft())
            if number in select.select([tree.stream.fileno(), number], [], [])[0]:
                return
            tree.take_events()

    thread = threading.Thread(target=confirm)
    thread.start()
    try:
        yield
    finally:
        stop.close()
        thread.join(30)
        stopped.close()


def agent_pid(supervisor: SupervisorProcess) -> int:
    """Return the process that serves the workspace; it has just answered."""
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if b"workspace.agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


@needs_root
def test_the_process_that_serves_has_nothing_but_the_workspace(
    supervisor: SupervisorProcess,
) -> None:
    with workspace(supervisor) as tree:
        put(tree, "seen.txt", b"seen")
        pid = agent_pid(supervisor)
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert "0" not in fields["Uid"].split() and fields["Groups"].strip() == ""
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
        assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"
        seen = sorted(path.name for path in Path(f"/proc/{pid}/root").iterdir())
        assert seen == [".enclave-sync", "seen.txt"]
        for name in ("net", "ipc", "mnt"):
            theirs = Path(f"/proc/{pid}/ns/{name}").readlink()
            assert theirs != Path(f"/proc/{supervisor.pid}/ns/{name}").readlink()


def test_files_outlive_the_stream_and_the_newest_stream_counts(
    supervisor: SupervisorProcess,
) -> None:
    with workspace(supervisor) as first:
        put(first, "kept.txt", b"kept")
        name = first.workspace
        with workspace(supervisor) as second:
            assert second.workspace == name
            assert second.scan(["kept.txt"])[0]["kept.txt"].size == 4
            with pytest.raises(StreamEndedError):
                first.scan([""])
                first.scan([""])


def test_garbage_ends_the_stream_and_nothing_else(supervisor: SupervisorProcess) -> None:
    for garbage in (b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\4oops", b"\0\0"):
        with workspace_stream(supervisor) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
    with workspace(supervisor) as tree:
        put(tree, "after.txt", b"fine")


def test_a_stream_without_tls_is_not_served(supervisor: SupervisorProcess) -> None:
    with supervisor.open(OpenWorkspace(version=PROTOCOL_VERSION)) as sock:
        MessageStream(sock, decode_from_enclave).send(Hello(WORKSPACE_VERSION))
        assert hangs_up(sock)


def test_a_notebook_starts_in_its_own_folder(supervisor: SupervisorProcess) -> None:
    """DESIGN section 6: a notebook in the mirrored folder finds the files beside it."""
    with workspace(supervisor) as tree, supervisor.control() as control:
        for folder in ("deep", "deep/er"):
            tree.do(MakeFolder(folder, 0o755))
        put(tree, "deep/er/data.csv", b"a,b\n1,2\n")
        request = msgspec.structs.replace(supervisor.launch_request(), workspace="deep/er")
        control.request(request)
        with confirming(tree), supervisor.client(request) as client:
            assert run_code(client, "print(open('data.csv').read())") == "a,b\n1,2\n\n"
            assert run_code(client, "import os; os.rename('data.csv', 'new.csv')") == ""
            run_code(client, "open('result.txt', 'w').write('of the cell')")
            run_code(client, "os.mkdir('made'); os.chmod('made', 0o711)")
            assert (
                run_code(client, "print(os.environ['ENCLAVE_WORKSPACE'])")
                .strip()
                .endswith("workspace" if os.geteuid() == 0 else "files")
            )
        found, _ = tree.scan(["deep"])
        assert set(found) == {
            *("deep", "deep/er", "deep/er/new.csv", "deep/er/result.txt", "deep/er/made")
        }
        assert found["deep/er/made"].mode == 0o711
        # Made by the notebook, and the serving process may change it.
        put(tree, "deep/er/result.txt", b"of the parent")
        tree.do(MakeFolder("deep/er/made/below", 0o755))


def test_two_notebooks_share_the_workspace(supervisor: SupervisorProcess) -> None:
    with workspace(supervisor) as tree, confirming(tree), supervisor.control() as control:
        requests = [
            msgspec.structs.replace(supervisor.launch_request(), workspace="") for _ in range(2)
        ]
        for request in requests:
            control.request(request)
        with supervisor.client(requests[0]) as one, supervisor.client(requests[1]) as other:
            run_code(one, "open('shared.txt', 'w').write('from one')")
            assert run_code(other, "print(open('shared.txt').read())").strip() == "from one"
            run_code(other, "open('shared.txt', 'a').write(' and other')")
            assert run_code(one, "print(open('shared.txt').read())").strip() == "from one and other"


def test_a_cell_ends_when_its_files_have_come(supervisor: SupervisorProcess) -> None:
    """The supervisor holds the end of a cell back until the parent confirms."""
    with workspace(supervisor) as tree, supervisor.control() as control:
        request = msgspec.structs.replace(supervisor.launch_request(), workspace="")
        control.request(request)
        with supervisor.client(request) as client:
            run_code(client, "1")
            sent = client.execute("open('late.txt', 'w').write('x')")
            while not tree.events:
                tree.take_events()
            time.sleep(0.3)
            assert not client.shell_channel.msg_ready()
            while tree.events:
                tree.confirm(tree.events.popleft())
            with confirming(tree):
                assert wait_until(client.shell_channel.msg_ready, 5)
            assert client.get_shell_msg(timeout=5)["parent_header"]["msg_id"] == sent


def test_a_launch_outside_of_the_workspace_is_refused(supervisor: SupervisorProcess) -> None:
    with supervisor.control() as control:
        for bad in ("..", "/etc", "a/../../b", "a//b"):
            request = msgspec.structs.replace(supervisor.launch_request(), workspace=bad)
            with pytest.raises(Refused):
                control.request(request)
