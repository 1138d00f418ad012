"""`python -m enclave_infra.software_nsm.make_root`: this machine's root, before any NSM runs.

For a backend whose software NSM runs somewhere else and is handed the root.
"""

import argparse
import sys
from pathlib import Path

from enclave_infra.software_nsm.certificates import load_root
from enclave_protocol.errors import EnclaveError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Make the root unless it exists.

    Returns:
        0; 1 with one line on stderr when it cannot be made.
    """
    parser = argparse.ArgumentParser(
        prog="python -m enclave_infra.software_nsm.make_root",
        description="Make the root key of this machine's software NSMs. NOT CONFIDENTIAL.",
        epilog="Example: python -m enclave_infra.software_nsm.make_root --root-dir "
        "~/.local/state/enclave/root",
    )
    parser.add_argument("--root-dir", type=Path, required=True, help="mode 0700, made if missing")
    try:
        load_root(parser.parse_args(argv).root_dir)
    except EnclaveError as error:
        sys.stderr.write(f"software NSM: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
