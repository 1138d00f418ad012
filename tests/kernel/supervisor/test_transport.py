"""Where the enclave listens, and whom it lets in."""

import socket
import stat
import tempfile
from pathlib import Path

import pytest

from enclave_kernel.supervisor.transport import EndpointError, is_parent, listen


def test_a_unix_endpoint_is_for_its_owner_only() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "socket"
        with listen(f"unix:{path}") as sock:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert not sock.getblocking()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


def test_a_stale_unix_socket_is_replaced() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "socket"
        listen(f"unix:{path}").close()
        listen(f"unix:{path}").close()


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "unix:", "tcp:127.0.0.1:80", "vsock:", "vsock:0", "vsock:1024", "vsock:-1"),
        *("vsock:3:5", "unix:/no/such/directory/socket"),
    ],
)
def test_other_endpoints_are_refused_in_one_line(endpoint: str) -> None:
    with pytest.raises(EndpointError) as error:
        listen(endpoint)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/dev/vsock").exists(), reason="no /dev/vsock on this machine")
def test_a_vsock_endpoint_listens_and_lets_only_the_parent_in() -> None:
    try:
        sock = listen("vsock:523")
    except EndpointError as error:
        pytest.skip(f"ports below 1024 need root: {error}")
    with sock:
        assert sock.family == socket.AF_VSOCK
        assert is_parent(sock, (3, 4000))
        assert is_parent(sock, (2, 4000))
        # The enclave's own CID, a sibling's, the hypervisor's, and no address at all.
        for address in ((16, 4000), (17, 1), (0, 1), (1, 1), (0xFFFFFFFF, 1), (), None, "3"):
            assert not is_parent(sock, address)
