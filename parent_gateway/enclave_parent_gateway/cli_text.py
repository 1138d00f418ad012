"""How the commands' help is laid out."""

__all__ = ["examples"]


def examples(*lines: str) -> str:
    """Return an epilog with these command lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
