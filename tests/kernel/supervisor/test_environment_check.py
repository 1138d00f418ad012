"""A package's key is asked for only in the kind of enclave that its owner made it for."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from enclave_kernel.key_release_errors import WrongEnvironmentError
from enclave_kernel.supervisor.app import Supervisor, SupervisorOptions
from enclave_kernel.supervisor.control_stream import NoGatewayError
from enclave_protocol.errors import EnclaveError
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_header import PackageHeader, decode_header, encode_header
from tests.support.example_package import FILES, KEY_ARN, make_label
from tests.support.local_services import software_nsm


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as path:
        yield Path(path)


def _header(environment: str) -> PackageHeader:
    label = make_label(FILES)
    policy = msgspec.structs.replace(label.policy, environment=environment)
    return decode_header(
        encode_header(msgspec.structs.replace(label, policy=policy), KeySlot(KEY_ARN, b"wrapped"))
    )


@pytest.mark.parametrize(
    ("environment", "development", "debug", "expected"),
    [
        ("production", False, False, NoGatewayError),
        ("production", True, False, NoGatewayError),
        ("development", True, False, NoGatewayError),
        ("development", True, True, NoGatewayError),
        ("development", False, False, WrongEnvironmentError),
        ("production", False, True, WrongEnvironmentError),
        ("production", True, True, WrongEnvironmentError),
    ],
)
async def test_the_key_is_asked_for_only_where_the_owner_meant_it(
    directory: Path, environment: str, development: bool, debug: bool, expected: type[EnclaveError]
) -> None:
    """Without a gateway, NoGatewayError is how far a release gets that the check lets through."""
    with software_nsm(directory, debug=debug) as nsm:
        supervisor = Supervisor(
            SupervisorOptions(
                listen=f"unix:{directory}/s",
                nsm=nsm.endpoint,
                runtime_dir=directory,
                development=development,
            )
        )
        try:
            with pytest.raises(expected):
                await supervisor._release_key(_header(environment))
        finally:
            await supervisor._close()
