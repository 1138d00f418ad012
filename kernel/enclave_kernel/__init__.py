"""Everything that runs inside the enclave."""
