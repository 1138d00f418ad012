"""What is in the memory of another process; needs root, or to be its parent."""

from pathlib import Path

__all__ = ["occurrences"]


def occurrences(pid: int, needle: bytes) -> int:
    """How often `needle` is in the readable memory of a process."""
    found = 0
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, permissions, *_ = line.split()
            if not permissions.startswith("r") or line.endswith("[vvar]"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(start)
                found += memory.read(end - start).count(needle)
            except (OSError, OverflowError, ValueError):
                continue
    return found
