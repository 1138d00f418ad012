"""`python -m enclave_infra.software_nsm`: the software NSM as a process, managed by its pid."""

import argparse
import json
import re
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

from enclave_infra.software_nsm.certificates import (
    ROOT_CERTIFICATE_NAME,
    CertificateChain,
    load_root,
)
from enclave_infra.software_nsm.measurement import initial_pcrs, measure
from enclave_infra.software_nsm.module import SoftwareModule
from enclave_infra.software_nsm.server import listen, serve
from enclave_protocol.attestation_document import PCR_BYTES
from enclave_protocol.errors import EnclaveError

__all__ = ["main"]

_REGION = "us-east-1"
_ROLE_ARN = "arn:aws:iam::222222222222:role/enclave-parent"  # the local cloud's parent instance


def _pcr(text: str) -> bytes:
    if not re.fullmatch(f"[0-9a-f]{{{2 * PCR_BYTES}}}", text):
        raise argparse.ArgumentTypeError(f"expected {2 * PCR_BYTES} lower-case hex digits")
    return bytes.fromhex(text)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m enclave_infra.software_nsm",
        description="A Nitro Secure Module in software. NOT CONFIDENTIAL: local backend only.",
        epilog="Example: python -m enclave_infra.software_nsm --socket /run/user/0/nsm.sock "
        "--root-dir ~/.local/share/enclave/root --measure kernel/enclave_kernel",
    )
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--root-dir", type=Path, required=True, help="this machine's root key")
    image = parser.add_mutually_exclusive_group(required=True)
    image.add_argument("--measure", type=Path, nargs="+", help="code that PCR0 is computed from")
    image.add_argument("--pcr0", type=_pcr, help="PCR0 as 96 hex digits")
    parser.add_argument("--debug", action="store_true", help="as a debug enclave: zero PCRs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Prints one JSON line when listening: ready, pcr0, module_id, socket, root_certificate.

    Returns:
        0; 1 with one line on stderr when it cannot start.
    """
    arguments = _arguments(argv)
    instance_id = f"i-{secrets.token_hex(9)[:17]}"
    module_id = f"{instance_id}-enc{secrets.token_hex(8)}"
    try:
        pcrs = initial_pcrs(
            pcr0=arguments.pcr0 or measure(arguments.measure),
            role_arn=_ROLE_ARN,
            instance_id=instance_id,
            debug=arguments.debug,
        )
        chain = CertificateChain(
            load_root(arguments.root_dir),
            instance_id=instance_id,
            module_id=module_id,
            region=_REGION,
        )
        module = SoftwareModule(
            module_id=module_id, pcrs=pcrs, chain=chain, clock=lambda: datetime.now(UTC)
        )
        with listen(arguments.socket) as listener:
            ready = {
                "ready": True,
                "pcr0": pcrs[0].hex(),
                "module_id": module_id,
                "socket": str(arguments.socket),
                "root_certificate": str(arguments.root_dir / ROOT_CERTIFICATE_NAME),
            }
            serve(
                listener,
                module.handle,
                on_ready=lambda: print(json.dumps(ready), flush=True),  # noqa: T201  # a CLI
            )
    except EnclaveError as error:
        sys.stderr.write(f"software NSM: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
