"""A gateway whose egress proxy may connect to addresses of the test's choice.

The real one has no switch for that: this takes its place in an enclave that runs, with another
address policy as an argument of its constructor.
"""

import argparse
import asyncio
import ipaddress
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from enclave_parent_gateway.api import GatewayStatus
from enclave_parent_gateway.egress.addresses import AddressPolicy
from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.gateway import Gateway
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.process_identity import stop_process
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.errors import EnclaveError
from enclave_protocol.messages import StatusRequest
from tests.support.enclave_home import EnclaveHome, wait_until

__all__ = ["gateway_that_reaches"]


@contextmanager
def gateway_that_reaches(home: EnclaveHome, networks: Sequence[str]) -> Iterator[None]:
    """Replace an enclave's gateway while the `with` block runs; its kernels live on."""
    paths = EnclavePaths.from_environment()
    state = read_state(paths.state_file)
    assert state is not None
    stop_process(state.processes["gateway"], grace_s=5)
    command = [sys.executable, "-m", "tests.support.open_gateway", state.endpoint, *networks]
    log = paths.log("open-gateway").open("ab")
    with log, subprocess.Popen(command, env=home.environ, stdout=log, stderr=log) as process:
        try:
            assert wait_until(lambda: _answers(paths))
            yield
        finally:
            process.terminate()
            process.wait(10)
            result = home.run("up")
            assert result.returncode == 0, result.stderr


def _answers(paths: EnclavePaths) -> bool:
    with suppress(EnclaveError, OSError):
        return (
            ask_blocking(paths.gateway_socket, StatusRequest(), GatewayStatus).enclave is not None
        )
    return False


async def _serve(endpoint: str, networks: Sequence[str]) -> None:
    policy = AddressPolicy(reachable=[ipaddress.ip_network(text) for text in networks])
    paths = EnclavePaths.from_environment()
    gateway = Gateway(
        paths,
        endpoint=endpoint,
        backend="local",
        idle_timeout_s=0,
        addresses=policy,
    )
    await gateway.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("networks", nargs="*")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    asyncio.run(_serve(options.endpoint, options.networks))
