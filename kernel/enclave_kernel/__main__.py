"""The enclave's supervisor: `python -m enclave_kernel`, run by a backend or the image's init."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from enclave_kernel.isolation.kernel_calls import LockdownError
from enclave_kernel.isolation.mounts import own_mounts
from enclave_protocol.errors import EnclaveError
from enclave_protocol.log_lines import FORMATS, set_up_logging

__all__ = ["main"]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m enclave_kernel",
        description="Run the enclave's supervisor. People use: enclave up",
        allow_abbrev=False,
    )
    parser.add_argument("--listen", required=True, help="vsock:PORT (below 1024) or unix:PATH")
    parser.add_argument("--nsm", default="/dev/nsm", help="/dev/nsm (default) or unix:PATH")
    parser.add_argument("--runtime-dir", required=True, type=Path, help="private, on a tmpfs")
    parser.add_argument("--kernel-memory-mib", type=int, help="limit of one kernel's processes")
    parser.add_argument(
        "--hide", action="append", default=[], type=Path, help="a folder no notebook may see"
    )
    parser.add_argument("--development", action="store_true", help="allow the two options below")
    parser.add_argument("--kms-endpoint-url", help="KMS elsewhere than AWS (development)")
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        help="of standard error; default: json, on a terminal text",
    )
    options = parser.parse_args(argv)
    if not options.development and (options.kms_endpoint_url or options.nsm != "/dev/nsm"):
        parser.error("--kms-endpoint-url and another --nsm than /dev/nsm need --development")
    if options.kernel_memory_mib is not None and options.kernel_memory_mib < 64:
        parser.error("--kernel-memory-mib is less than 64, which no kernel starts in")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor until it is told to stop; return the exit status."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)
    set_up_logging(options.log_format)
    try:
        if os.geteuid() == 0:
            _own_mounts()
        asyncio.run(_run(options))
    except EnclaveError as error:
        print(f"enclave: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _own_mounts() -> None:
    """What is mounted for the enclave ends with it, however it ends."""
    try:
        own_mounts()
    except LockdownError as error:
        # Root without the right to mount, in some container: then nothing is mounted, and no
        # kernel and no vault starts. Status says so.
        logging.getLogger(__name__).warning("no mounts of its own: %s", error)


async def _run(options: argparse.Namespace) -> None:
    # Late, so that --help and wrong arguments answer at once.
    from enclave_kernel.supervisor.app import Supervisor, SupervisorOptions
    from enclave_kernel.supervisor.egress import make_room_for_connections

    make_room_for_connections()

    memory = options.kernel_memory_mib
    supervisor = Supervisor(
        SupervisorOptions(
            listen=options.listen,
            nsm=options.nsm,
            runtime_dir=options.runtime_dir,
            hidden=tuple(options.hide),
            development=options.development,
            kms_endpoint_url=options.kms_endpoint_url,
            kernel_memory_bytes=None if memory is None else memory * 2**20,
        )
    )
    await supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
