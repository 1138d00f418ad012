"""The contract between parent instance, enclave and owner: bytes in, values out, no policy."""
