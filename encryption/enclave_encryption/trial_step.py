"""What came of one step of a trial on both sides, and what is to be said about the difference."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from enclave_protocol.trial_messages import Ended, NotedCall

__all__ = ["CallPair", "Step", "last_drawn", "paired", "plain_notes"]


@dataclass(frozen=True)
class CallPair:
    """One call into the package.

    Attributes:
        user: How it ended for the user.
        owner: How it ended for the owner; None if no call of the owner's belongs to it.
    """

    user: NotedCall
    owner: NotedCall | None


@dataclass(frozen=True)
class Step:
    """What came of loading, of a cell or of a script, on both sides.

    Attributes:
        kind: "load", "cell" or "script".
        source: The cell's code, or the script with its arguments.
        owner: The truth.
        user: What the user sees.
        calls: Calls that the user's code made.
        notes: What the owner should know about the difference.
        files: What a script wrote that the user gets.
        places: Where its incidents arose in the vault, as `scorer.py:42`; those that are known.
    """

    kind: str
    source: str
    owner: Ended
    user: Ended
    calls: tuple[CallPair, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def crossed(self) -> bool:
        """Whether the user got a result of everything."""
        return (
            not self.user.error
            and not self.user.exit_code
            and not any(pair.user.error for pair in self.calls)
        )

    @property
    def incidents(self) -> tuple[str, ...]:
        """The ids that the user got."""
        ids = [self.user.incident, *(pair.user.incident for pair in self.calls)]
        return tuple(dict.fromkeys(filter(None, ids)))

    def hidden_calls(self) -> tuple[CallPair, ...]:
        """Return the calls that failed without being the error that ended the cell."""
        return tuple(
            pair
            for pair in self.calls
            if pair.user.error
            and (pair.user.error, pair.user.incident) != (self.user.error, self.user.incident)
        )


def paired(owner: Sequence[NotedCall], user: Sequence[NotedCall]) -> tuple[CallPair, ...]:
    """Return the user's calls, each with the owner's of the same name and turn."""
    turns: dict[str, list[NotedCall]] = defaultdict(list)
    for call in owner:
        turns[call.name].append(call)
    pairs = []
    for call in user:
        same = turns[call.name]
        pairs.append(CallPair(call, same.pop(0) if same else None))
    return tuple(pairs)


def plain_notes(owner: Ended, user: Ended) -> tuple[str, ...]:
    """Return what can be said without looking at the values."""
    notes = []
    if user.error and owner.refusal:
        # What would be accepted is a long list.
        reason = owner.refusal.partition("; accepted are")[0]
        notes.append(f"the value cannot leave a package: {reason}")
    if owner.error and not user.error and not user.exit_code:
        if owner.error.startswith("SyntaxError") and not owner.calls:
            notes.append("what IPython adds to Python works on the user's side only: leave it out")
            return tuple(notes)
        notes.append("it failed for you only: does it need something of your environment?")
    if not owner.error and user.incident:
        notes.append("it failed for the user only: a vault has no network and none of your files")
    if owner.result_type and not user.result_type and not user.error:
        notes.append("the user gets no value: `returns` says so, or the code does")
    return tuple(notes)


def last_drawn(text: str) -> str:
    """Return what a terminal would show of lines that were drawn again and again."""
    lines = []
    for line in text.split("\n"):
        drawn = [part for part in line.split("\r") if part]
        lines.append(drawn[-1] if drawn else "")
    return "\n".join(lines)
