"""What `%enclave` tells the person at the notebook, against what the administrator is told."""

from tests.support.enclave_home import EnclaveHome, kernel
from tests.support.notebook_cells import run_cell


def test_it_says_which_enclave_this_is_and_what_was_checked(enclave: EnclaveHome) -> None:
    with kernel() as (_, client):
        cell = run_cell(client, "%enclave")
    status = enclave.status()
    assert cell.error is None
    assert "NOT CONFIDENTIAL (development enclave)" in cell.printed
    assert status["pcrs"]["0"] in cell.printed
    for wall in status["isolation"]:
        assert wall in cell.printed


def test_wrong_use_is_one_line(enclave: EnclaveHome) -> None:
    assert enclave
    with kernel() as (_, client):
        cell = run_cell(client, "%enclave status")
    assert cell.printed == (
        "UsageError: %enclave takes no arguments; %encrypted lists loaded packages\n"
    )
