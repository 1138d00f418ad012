"""A Nitro Secure Module in software, for the local backend only: NOT CONFIDENTIAL.

It signs real COSE documents under a root made on this machine. No production image contains it.
"""
