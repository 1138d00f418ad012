"""The supervisor's log: JSON or text, and no flood of it."""

import tempfile
from pathlib import Path

from enclave_protocol.key_slot import KeySlot
from enclave_protocol.log_lines import decode_log_line
from enclave_protocol.messages import EnclaveStatus, KernelLaunched, StatusRequest
from enclave_protocol.package_header import encode_header
from tests.support.example_package import FILES, KEY_ARN, make_label
from tests.support.supervisor_process import supervisor_process

_STORM = """
import enclave_kernel.session_messages as messages
link = get_ipython().kernel.supervisor_link
# One number over and over: all but the first are refused at once.
for _ in range(3000):
    link.send(messages.encode(messages.LoadPackage(request_id=7, file_name="x", header=header)))
# Answered behind them.
link.about()
"""


def test_text_for_people() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as folder,
        supervisor_process(Path(folder), "--log-format", "text") as supervisor,
    ):
        first = supervisor.log.read_bytes().splitlines()[0]
    assert first.endswith(b"listening on unix:" + bytes(supervisor.path))
    assert decode_log_line(first) is None


def test_a_storm_of_refused_loads_is_counted_and_not_logged() -> None:
    header = encode_header(make_label(FILES), KeySlot(KEY_ARN, b"wrapped"))
    with (
        tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as folder,
        supervisor_process(Path(folder)) as supervisor,
        supervisor.control() as control,
    ):
        request = supervisor.launch_request()
        assert isinstance(control.request(request), KernelLaunched)
        with supervisor.client(request) as client:
            code = f"header = {header!r}\n{_STORM}"
            assert client.execute_interactive(code, timeout=30)["content"]["status"] == "ok"
        status = control.request(StatusRequest())
        assert isinstance(status, EnclaveStatus)
        assert status.counts.refusals["TooManyVaultsError"] >= 2000
        assert supervisor.log.stat().st_size < 20_000
        assert decode_log_line(supervisor.log.read_bytes().splitlines()[0]) is not None
