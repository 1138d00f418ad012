"""What makes a compiled program print line by line, as on a terminal, without its knowing.

Source: stdbuf(1) of coreutils, which does the same.
"""

from typing import Final

__all__ = ["LINE_BUFFERS", "LINE_BUFFERS_ENVIRON"]

LINE_BUFFERS: Final = "/usr/libexec/coreutils/libstdbuf.so"
"""Loaded before the program's own libraries; one that is static goes without."""
LINE_BUFFERS_ENVIRON: Final = {"_STDBUF_O": "L"}
