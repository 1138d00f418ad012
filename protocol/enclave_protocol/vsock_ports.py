"""The vsock ports that both sides of an enclave image know.

Source: FACTS, "vsock"; THREATS V-03 (below 1024, so that no other user's process can take them).
"""

from typing import Final

__all__ = ["HEARTBEAT_BYTE", "HEARTBEAT_PORT", "SUPERVISOR_PORT"]

SUPERVISOR_PORT: Final = 901
"""Where the supervisor of an image listens, in the enclave."""
HEARTBEAT_PORT: Final = 9000
"""Where the parent (nitro-cli, or the QEMU backend) waits for a sign that the image booted."""
HEARTBEAT_BYTE: Final = 0xB7
"""Sent by the enclave at boot, and sent back."""
