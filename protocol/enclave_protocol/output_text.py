"""What a package prints, made fit for a notebook: in the vault, and again where it arrives.

Source: docs/spec/vault_calls.md, "Output".
"""

import re
from typing import Final

__all__ = [
    "CALL_TEXT_CHARS",
    "MAX_TEXT_CHARS",
    "TEXT_BURST_CHARS",
    "TEXT_CHARS_PER_S",
    "output_text",
]

MAX_TEXT_CHARS: Final = 32 * 1024
"""Characters of one message: it is shown before the next one is read."""
CALL_TEXT_CHARS: Final = 16 * 1024 * 1024
"""Characters of one call: a notebook with more cannot be opened any more."""
TEXT_CHARS_PER_S: Final = 64 * 1024
"""More than a person reads; a call that prints more all the time loses the rest."""
TEXT_BURST_CHARS: Final = 1024 * 1024
"""What a call may print at once, as before it was slow."""

# Strings for the terminal (titles, links, the clipboard) may have any length, but no line feed:
# one that never ends takes its line along and not the rest of the output.
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]{0,8}[0-OQ-WYZ\\`-~]"
)


def output_text(text: str) -> str:
    """Return `text` without escape sequences and without characters that do not print.

    Line feeds and tabs stay; a carriage return, with which a line is written again, begins a new
    line. Bidi controls and other format characters go as well.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _is_plain(text):
        return text
    text = _ESCAPES.sub("", text)
    return "".join(
        character
        for character in text
        # Spaces other than the usual one do not count as printing; they are text all the same.
        if character.isprintable() or character in "\n\t" or _is_space(character)
    )


def _is_plain(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def _is_space(character: str) -> bool:
    # Not by str.isspace: that is true for line separators and some control characters.
    return character in "\u00a0\u2007\u202f\u3000"
