"""What counts as compiled code in a package: by name, and by the first bytes of a file.

Source: docs/spec/encrypted_package.md, "Compiled code"; THREATS Z-08.
"""

import re
from typing import Final

__all__ = ["HEAD_BYTES", "is_compiled_head", "is_compiled_name"]

HEAD_BYTES: Final = 4
"""As much of a file as tells."""
_NAME: Final = re.compile(r".*\.(so(\.[0-9]+)*|pyd|dll|dylib)", re.IGNORECASE | re.DOTALL)
_HEADS: Final = (
    b"\x7fELF",
    # Mach-O of either width and byte order, and for several processors at once.
    *(b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe"),
    b"\xca\xfe\xba\xbe",
)


def is_compiled_name(path: str) -> bool:
    """Return whether a file of this name is a library that programs load."""
    return _NAME.fullmatch(path.rpartition("/")[2]) is not None


def is_compiled_head(head: bytes) -> bool:
    """Return whether a file that begins so is a program or library, whatever its name."""
    return head[:HEAD_BYTES] in _HEADS
