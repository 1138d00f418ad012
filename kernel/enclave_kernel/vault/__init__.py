"""The owner's process: decrypts and runs one package for one notebook.

For owners, whose code runs in there: `from enclave_kernel import vault; vault.progress(0.4)`.
Nothing else in here is for them.
"""

from enclave_kernel.vault.owner_calls import progress

__all__ = ["progress"]
