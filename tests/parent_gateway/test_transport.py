import socket
from pathlib import Path

import pytest

from enclave_parent_gateway.errors import TransportError
from enclave_parent_gateway.transport import connect


def test_unix(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with connect(f"unix:{tmp_path / 's'}") as sock:
            peer, _ = listener.accept()
            with peer:
                sock.sendall(b"hello")
                assert peer.recv(5) == b"hello"
            assert sock.gettimeout() is None


@pytest.mark.parametrize(
    "endpoint", ["", "tcp:127.0.0.1:80", "vsock:3", "vsock:a:b", "vsock:3:5:7", "vsock:-1:5"]
)
def test_what_is_not_an_endpoint(endpoint: str) -> None:
    with pytest.raises(TransportError, match="is not an endpoint"):
        connect(endpoint)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="nothing answers"):
        connect(f"unix:{tmp_path / 'nothing'}")


@pytest.mark.parametrize("endpoint", ["vsock:77:5", "vsock:9999999999:5"])
def test_vsock_without_an_enclave(endpoint: str) -> None:
    with pytest.raises(TransportError, match="nothing answers"):
        connect(endpoint)


def test_path_that_is_too_long() -> None:
    with pytest.raises(TransportError, match="at most 107 bytes"):
        connect("unix:/" + "x" * 107)
