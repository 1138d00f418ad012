"""The user's side of `enclave-owner try`: vaults and proxies as in a notebook, without an enclave.

On the owner's machine only; nothing that runs in an enclave imports it.
"""
