"""`enclave-image` from its first instruction: says what to install where something is missing.

The standard library only.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run `enclave-image`; exit codes are those of `cli`."""
    try:
        from enclave_infra.image.cli import main as run

        run(prog_name="enclave-image")
    except ModuleNotFoundError as error:
        sys.exit(
            f"enclave-image: there is no module {error.name}: pip install 'enclave-kernel[infra]'"
        )


if __name__ == "__main__":
    main()
