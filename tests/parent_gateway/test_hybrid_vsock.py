"""The start of a stream over a vsock device's Unix socket; the device itself is in tests/vm."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave_parent_gateway.errors import TransportError
from enclave_parent_gateway.transport import connect


@contextmanager
def device(path: Path, answer: bytes, *, stays: bool = True) -> Iterator[list[bytes]]:
    """Answer one connection as a device would, and note what was asked."""
    asked: list[bytes] = []
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                asked.append(sock.recv(100))
                sock.sendall(answer)
                if stays:
                    done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            done.set()
            thread.join()


def test_what_follows_the_answer_belongs_to_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with device(path, b"OK 1073741824\nearly") as asked, connect(f"hybrid:901:{path}") as sock:
        assert asked == [b"CONNECT 901\n"]
        assert sock.recv(100) == b"early"
        assert sock.gettimeout() is None


def test_nobody_listens_in_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        device(path, b"", stays=False),
        pytest.raises(TransportError, match="nobody listens on port 5 of the machine"),
    ):
        connect(f"hybrid:5:{path}")


@pytest.mark.parametrize(
    "answer", [b"NO\n", b"OK\n", b"OK x\n", b"OK 1 2\n", b"\n", b"O" * 40, b"OK 12345678901\n"]
)
def test_what_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "s"
    with device(path, answer), pytest.raises(TransportError, match="device answered"):
        connect(f"hybrid:5:{path}")


@pytest.mark.parametrize("answer", [b"", b"OK 1"])
def test_a_silent_device_is_not_waited_for(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "s"
    with device(path, answer), pytest.raises(TransportError, match="timed out"):
        connect(f"hybrid:5:{path}", timeout_s=0.2)


def test_there_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="No such file"):
        connect(f"hybrid:5:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("endpoint", ["hybrid:5", "hybrid:x:/a", "hybrid:5:relative", "hybrid:5:"])
def test_what_is_not_an_endpoint(endpoint: str) -> None:
    with pytest.raises(TransportError, match="is not an endpoint"):
        connect(endpoint)


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(TransportError, match="at most 107 bytes"):
        connect("hybrid:5:/" + "x" * 107)
