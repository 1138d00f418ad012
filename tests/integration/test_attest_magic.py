"""What `%attest` shows, and that a script can check it again."""

import base64
import json
from datetime import UTC, datetime

from enclave_parent_gateway.backends.local import LocalBackend
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.attestation_verify import verify_attestation
from enclave_protocol.channel_binding import NOTEBOOK_USER_DATA
from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.notebook_cells import run_cell


def test_it_shows_what_was_verified_and_marks_what_is_not_confidential(
    enclave: EnclaveHome,
) -> None:
    with kernel() as (_, client):
        cell = run_cell(client, "%attest")
        again = json.loads(run_cell(client, "%attest --json").printed)
        wrong = run_cell(client, "%attest --all")
    assert cell.error is None
    assert "\x1b[1;31mNOT CONFIDENTIAL (local or development enclave)" in cell.printed
    assert enclave.status()["pcrs"]["0"] in cell.printed
    assert "not AWS's" in cell.printed
    assert wrong.printed == "UsageError: usage: %attest [--json]\n"
    assert again["confidential"] is False
    assert again["root_pinned"] is False
    document = verify_attestation(
        base64.b64decode(again["document"]),
        root=LocalBackend().attestation_root(EnclavePaths.from_environment()),
        now=datetime.now(UTC),
        nonce=bytes.fromhex(again["nonce"]),
        pcrs={0: bytes.fromhex(enclave.status()["pcrs"]["0"])},
    )
    # For showing only: it passes neither for a channel's document nor for a key release's.
    assert (document.user_data, document.public_key) == (NOTEBOOK_USER_DATA, None)


def test_a_notebook_that_asks_for_many_waits_and_the_others_do_not(enclave: EnclaveHome) -> None:
    assert enclave
    storm = """
import os, time
from enclave_kernel import session_messages as messages
link = get_ipython().kernel.supervisor_link
for number in range(10**6, 10**6 + 200):
    link.send(messages.encode(messages.AttestRequest(request_id=number, nonce=os.urandom(32))))
begin = time.monotonic()
try:
    link.attest(os.urandom(32))
except Exception as error:
    print(error)
"""
    with kernel() as (_, hostile), kernel() as (_, honest):
        cell = run_cell(hostile, storm)
        assert "too many" in cell.printed
        begin = datetime.now(UTC)
        assert run_cell(honest, "%attest").error is None
        assert (datetime.now(UTC) - begin).total_seconds() < 5
