import stat
from pathlib import Path

import pytest

from enclave_parent_gateway.enclave_state import EnclaveState, read_state, write_state
from enclave_parent_gateway.errors import RuntimeDirError
from enclave_parent_gateway.process_identity import ProcessIdentity


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "enclave.json"
    assert read_state(path) is None
    state = EnclaveState("local", 1.5, "unix:/x", kms_endpoint_url="http://127.0.0.1:1")
    state = state.with_process("gateway", ProcessIdentity(7, 99))
    write_state(path, state)
    assert read_state(path) == state
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["enclave.json"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"backend": "local", "pid": 1}', b'{"backend": "\xe8"}']
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "enclave.json"
    path.write_bytes(content)
    with pytest.raises(RuntimeDirError, match="not a state file"):
        read_state(path)
