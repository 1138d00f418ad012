"""A supervisor that was told of no other KMS asks for the proxy; the test is the gateway."""

import os
import tempfile
import threading
from pathlib import Path

import pytest

from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.messages import (
    CredentialsRequest,
    EgressWanted,
    Envelope,
    OpenEgress,
    decode_envelope,
    encode,
)
from tests.support.local_services import HOST_CREDENTIALS
from tests.support.notebook_cells import run_cell
from tests.support.sealed_package import KEY_ARN, seal_package
from tests.support.supervisor_process import Control, SupervisorProcess, supervisor_process

_MANIFEST = '[package]\nname="some"\nversion="1"\nmodule="some"\n'
_REFUSAL = b"HTTP/1.1 403 enclave: not today\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Gateway(threading.Thread):
    """Answers what the supervisor asks, and notes what comes over egress streams."""

    def __init__(self, supervisor: SupervisorProcess, control: Control) -> None:
        super().__init__(daemon=True)
        self._supervisor = supervisor
        self._control = control
        self.kernels: list[str | None] = []
        self.heads: list[bytes] = []

    def run(self) -> None:
        """Serve until the control stream ends."""
        decoder = FrameDecoder()
        while True:
            try:
                data = self._control.sock.recv(65536)
            except OSError:
                return
            if not data:
                return
            for payload in decoder.feed(data):
                self._take(decode_envelope(payload))

    def _take(self, envelope: Envelope) -> None:
        body = envelope.body
        if isinstance(body, CredentialsRequest):
            reply = Envelope(HOST_CREDENTIALS, reply_to=envelope.request_id)
            self._control.sock.sendall(encode_frame(encode(reply)))
        elif isinstance(body, EgressWanted):
            self.kernels.append(body.kernel_id)
            with self._supervisor.open(OpenEgress(body.ticket)) as stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += stream.recv(4096)
                self.heads.append(head)
                stream.sendall(_REFUSAL)


@pytest.mark.skipif(os.geteuid() != 0, reason="raising lo, and walls, need root")
def test_key_release_asks_for_the_proxy() -> None:
    region = KEY_ARN.split(":")[3]
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as name,
        supervisor_process(Path(name)) as supervisor,
        supervisor.control() as control,
    ):
        request = supervisor.launch_request()
        control.request(request)
        gateway = _Gateway(supervisor, control)
        gateway.start()
        data = seal_package({"some.py": "x = 1\n"}, _MANIFEST).data
        with supervisor.client(request) as client:
            write = f"open('some.encrypted', 'wb').write(bytes.fromhex({data.hex()!r}))"
            assert run_cell(client, f"import os; os.chdir('/tmp'); {write}").error is None
            cell = run_cell(client, "%load_encrypted some.encrypted --unsigned", 60)
    assert cell.error is not None and cell.error.name == "KmsUnreachableError", cell
    assert "enclave proxy allow kms" in cell.error.value
    # The enclave's own, one for each attempt: nothing is sent but the name of the host.
    assert set(gateway.kernels) == {None}
    target = f"kms.{region}.amazonaws.com:443"
    for head in gateway.heads:
        assert head.startswith(f"CONNECT {target} HTTP/1.".encode())
        assert b"uthorization" not in head and HOST_CREDENTIALS.access_key_id.encode() not in head
