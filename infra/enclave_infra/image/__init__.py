"""Builds enclave images: a root file system, ramdisks, an EIF. The command is `enclave-image`.

Nothing here runs in an enclave; the image's own first process is `enclave_kernel.boot`.
"""
