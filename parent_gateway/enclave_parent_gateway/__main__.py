"""`enclave` from its first instruction: says what to install where something it needs is missing.

The standard library only.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run `enclave`; exit codes are those of `cli`."""
    try:
        from enclave_parent_gateway.cli import main as run

        run(prog_name="enclave")
    except ModuleNotFoundError as error:
        sys.exit(f"enclave: there is no module {error.name}: pip install 'enclave-kernel[parent]'")


if __name__ == "__main__":
    main()
