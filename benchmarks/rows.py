"""A benchmark's results as rows: ours, a peer's, their ratio and whether a goal is met."""

import statistics
from dataclasses import dataclass

__all__ = ["Row", "compare", "limit", "table"]


@dataclass(frozen=True)
class Row:
    """One measurement: ours and the peer's median seconds, and the goal for one of the numbers.

    Attributes:
        name: What was done.
        ours: Through the vault.
        peer: The peer's; None where a time alone is the goal.
        ratio: Ours in the peer's, the median of the rounds': the machine's other load hits both.
        against: Who the peer is.
        goal: In words; empty for none.
        met: Whether it is met; True where there is none.
    """

    name: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    against: str = ""
    goal: str = ""
    met: bool = True


def compare(
    name: str,
    ours: list[float],
    peer: list[float],
    against: str,
    goal: tuple[float, str] | None = None,
) -> Row:
    """Return a row; `goal` is the largest ratio accepted, and how to say it."""
    ratio = statistics.median(our / their for our, their in zip(ours, peer, strict=False))
    met = goal is None or ratio <= goal[0]
    words = "" if goal is None else goal[1]
    medians = statistics.median(ours), statistics.median(peer)
    return Row(name, *medians, ratio, against, words, met)


def limit(name: str, ours: list[float], limit_s: float, words: str) -> Row:
    """Return a row whose goal is a time alone, `limit_s` seconds at most."""
    middle = statistics.median(ours)
    return Row(name, middle, goal=words, met=middle <= limit_s)


def table(rows: list[Row]) -> str:
    """Return `rows` as lines of text."""
    lines = [f"{'':46}{'vault':>11}{'peer':>11}{'ratio':>8}  peer and goal"]
    for row in rows:
        peer = "" if row.peer is None else _shown(row.peer)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        verdict = f"{row.goal} {'✓' if row.met else '✗'}" if row.goal else ""
        words = ": ".join(part for part in (row.against, verdict) if part)
        lines.append(f"{row.name:46}{_shown(row.ours):>11}{peer:>11}{ratio:>8}  {words}")
    return "\n".join(lines)


def _shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
