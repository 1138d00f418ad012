"""`python -m enclave_infra.local_cloud`: KMS and S3 for the local backend, on 127.0.0.1."""

import argparse
import json
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from werkzeug.serving import WSGIRequestHandler, make_server

from enclave_infra.local_cloud.application import LocalCloud
from enclave_infra.local_cloud.cms_encoding import CmsShape
from enclave_infra.local_cloud.identities import (
    HOST_ACCESS_KEY_ID,
    HOST_SECRET_ACCESS_KEY,
    OWNER_ACCESS_KEY_ID,
    OWNER_SECRET_ACCESS_KEY,
    REGION,
)
from enclave_protocol.errors import EnclaveError

__all__ = ["main"]

_ADDRESS = "127.0.0.1"
_POLL_S = 0.1


class _QuietHandler(WSGIRequestHandler):
    """One line per request on stderr would drown what matters."""

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002  # the base's name
        if type == "error":
            super().log(type, message, *args)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m enclave_infra.local_cloud",
        description="KMS and S3 for the local backend. NOT CONFIDENTIAL.",
        epilog="Example: python -m enclave_infra.local_cloud "
        "--root-cert ~/.local/share/enclave/root/root.pem --state-dir ~/.local/share/enclave/cloud",
    )
    parser.add_argument(
        "--root-cert", type=Path, required=True, help="root of the software NSM, PEM"
    )
    parser.add_argument("--state-dir", type=Path, required=True, help="where keys are kept")
    parser.add_argument("--port", type=int, default=0, help="0: any free one (default)")
    parser.add_argument(
        "--cms-shape",
        type=CmsShape,
        choices=list(CmsShape),
        default=CmsShape.CONSTRUCTED,
        help="form of CiphertextForRecipient",
    )
    return parser.parse_args(argv)


def _keys(access_key_id: str, secret_access_key: str) -> dict[str, str]:
    return {"access_key_id": access_key_id, "secret_access_key": secret_access_key}


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then stop within a second.

    Prints one JSON line when ready: endpoint_url, region and both identities' access keys.

    Returns:
        0; 1 with one line on stderr when it cannot start.
    """
    arguments = _arguments(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        root = x509.load_pem_x509_certificate(arguments.root_cert.read_bytes())
        application = LocalCloud(
            root=root.public_bytes(Encoding.DER),
            state_dir=arguments.state_dir,
            shape=arguments.cms_shape,
            clock=lambda: datetime.now(UTC),
        )
        server = make_server(
            _ADDRESS, arguments.port, application, threaded=True, request_handler=_QuietHandler
        )
    except (EnclaveError, OSError, ValueError) as error:
        print(f"local cloud: {error}", file=sys.stderr)  # noqa: T201  # a CLI
        return 1
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True)
    thread.start()
    ready = {
        "endpoint_url": f"http://{_ADDRESS}:{server.server_port}",
        "region": REGION,
        "owner": _keys(OWNER_ACCESS_KEY_ID, OWNER_SECRET_ACCESS_KEY),
        "host": _keys(HOST_ACCESS_KEY_ID, HOST_SECRET_ACCESS_KEY),
    }
    print(json.dumps(ready), flush=True)  # noqa: T201  # a CLI
    stop.wait()
    server.shutdown()
    thread.join()
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
