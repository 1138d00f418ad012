"""A client that does not read for two seconds loses nothing."""

import time

from tests.support.enclave_home import EnclaveHome, kernel

_MESSAGES = 20_000


def test_every_display_call_arrives_at_a_client_that_was_not_reading(enclave: EnclaveHome) -> None:
    code = (
        "from IPython.display import display\n"
        f"for number in range({_MESSAGES}):\n"
        "    display({'text/plain': str(number)}, raw=True)"
    )
    with kernel() as (_, client):
        request = client.execute(code)
        time.sleep(2)
        numbers = []
        while True:
            message = client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "display_data":
                numbers.append(int(message["content"]["data"]["text/plain"]))
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
    assert numbers == list(range(_MESSAGES))
