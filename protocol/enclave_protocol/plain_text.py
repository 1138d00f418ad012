"""Text of a stranger's, made fit for a terminal, a notebook or a log."""

from typing import Final

__all__ = ["MAX_LINE_CHARS", "plain_text"]

MAX_LINE_CHARS: Final = 500
"""What a person reads of one message; longer ones only push the rest off the screen."""


def plain_text(text: str, *, limit: int | None = MAX_LINE_CHARS, keep_lines: bool = False) -> str:
    """Return `text` with a space for every character that does not print.

    Those are control characters (C0, DEL, C1: escape sequences, CR, LF), bidi controls and other
    format characters, line separators and lone surrogates.

    Args:
        text: From a label, a vault or a file's name.
        limit: Most characters to return, a cut being shown by an ellipsis; None for all.
        keep_lines: Keep line feeds, where several lines are expected: docs.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(
        character if character.isprintable() or (keep_lines and character == "\n") else " "
        for character in text
    )
