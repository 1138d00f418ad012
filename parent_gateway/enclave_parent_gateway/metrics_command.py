"""`enclave metrics`: what Prometheus would scrape."""

import socket
from pathlib import Path
from typing import Final

import click

from enclave_parent_gateway.cli_text import examples
from enclave_parent_gateway.errors import EnclaveNotRunningError, GatewayError
from enclave_parent_gateway.runtime_dir import EnclavePaths

__all__ = ["metrics", "scrape"]

_TIMEOUT_S: Final = 20.0
_MAX_BYTES: Final = 4 * 1024 * 1024
_PORTION_BYTES: Final = 64 * 1024
_REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n"


@click.command(
    epilog=examples(
        "enclave metrics",
        "enclave metrics > /var/lib/node_exporter/enclave.prom.new && mv "
        "/var/lib/node_exporter/enclave.prom.new /var/lib/node_exporter/enclave.prom",
    )
)
def metrics() -> None:
    """Print the metrics in Prometheus's text format.

    They are the ones on the socket metrics.sock of the runtime directory. No kernel, package, host
    or file is named in them. Exit code 1: no enclave is up.
    """
    paths = EnclavePaths.from_environment()
    paths.require_own("sudo -u enclave enclave metrics")
    click.echo(scrape(paths.metrics_socket), nl=False)


def scrape(path: Path) -> str:
    """Return what the gateway answers on this socket.

    Raises:
        EnclaveNotRunningError: Nothing listens there.
        GatewayError: It does not answer, or with something else.
    """
    data = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(path))
            sock.sendall(_REQUEST)
            while (piece := sock.recv(_PORTION_BYTES)) and len(data) <= _MAX_BYTES:
                data += piece
        except (FileNotFoundError, ConnectionError) as error:
            raise EnclaveNotRunningError(
                f"no enclave is up (nothing answers at {path}); type: enclave up"
            ) from error
        except OSError as error:
            raise GatewayError(
                f"the gateway does not answer at {path}; see: enclave logs"
            ) from error
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise GatewayError("the gateway has no metrics now; see: enclave logs")
    return body.decode()
