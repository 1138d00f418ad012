"""The wildcards of policies: `*` is any run of characters, `?` any one."""

__all__ = ["is_pattern", "wildcard_match"]


def is_pattern(text: str) -> bool:
    """Return whether `text` has a wildcard."""
    return "*" in text or "?" in text


def wildcard_match(pattern: str, value: str) -> bool:
    """Return whether all of `value` matches `pattern`, case-sensitively.

    Takes at most len(pattern) * len(value) steps: whoever writes a policy or a request cannot
    make this backtrack, as a regular expression with many `.*` would.
    """
    position = at = 0
    star, resume = -1, 0
    while at < len(value):
        if position < len(pattern) and pattern[position] == "*":
            star, resume = position, at
            position += 1
        elif position < len(pattern) and pattern[position] in ("?", value[at]):
            position += 1
            at += 1
        elif star >= 0:
            # Only the last star can need more characters; earlier ones are settled.
            resume += 1
            position, at = star + 1, resume
        else:
            return False
    return pattern[position:].strip("*") == ""
