"""`python -m enclave_infra.image`: the command `enclave-image`."""

from enclave_infra.image.cli import main

main(prog_name="enclave-image")
