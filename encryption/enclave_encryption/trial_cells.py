"""What an owner should know about the difference between a notebook's two runs."""

from collections import defaultdict
from collections.abc import Sequence

from enclave_protocol.manifest import Manifest
from enclave_protocol.output_text import output_text
from enclave_protocol.trial_messages import Ended, ShownCell

__all__ = ["notebook_notes"]

_SHOWING = ("text", "all")


def notebook_notes(manifest: Manifest, file: str, owner: Ended, user: Ended) -> tuple[str, ...]:
    """Return what is to be said of the cells.

    Args:
        manifest: The package's.
        file: The notebook's path in it.
        owner: How it ended for the owner.
        user: How it ended for the user.
    """
    notes = []
    name, script = next(
        (name, script) for name, script in manifest.scripts.items() if script.file == file
    )
    shown = script.output in _SHOWING
    policy = manifest.policy.output
    showing = [cell.number for cell in user.cells if cell.output and not _failed(cell, user)]
    # The owner said it of calls; "progress" is the default, and says nothing.
    if showing and policy == "none":
        notes.append(
            f"the user sees outputs of {_cells(showing)}: [scripts] {name} has output = "
            f'"{script.output}", whatever [policy] output = "{policy}" says of calls'
        )
    with_source = [cell.number for cell in user.cells if cell.source]
    if with_source:
        notes.append(f"the user has the source of {_cells(with_source)}")
    if not shown and any(cell.output for cell in owner.cells):
        notes.append(f'the user gets no outputs: [scripts] {name} has output = "{script.output}"')
    if shown:
        notes += _differences(owner.cells, user)
    return tuple(notes)


def _differences(owner: Sequence[ShownCell], user: Ended) -> list[str]:
    notes = []
    missing: dict[str, list[int]] = defaultdict(list)
    for cell in owner:
        for kind in cell.left_out:
            missing[kind].append(cell.number)
    for kind, numbers in missing.items():
        notes.append(f"the user gets no {kind}, of {_cells(numbers)}: only text and pixels leave")
    for_user = {cell.number: cell for cell in user.cells}
    other = [
        cell.number
        for cell in owner
        if cell.number in for_user
        and not _failed(for_user[cell.number], user)
        and _words(cell.output) != _words(for_user[cell.number].output)
    ]
    if other:
        notes.append(f"the two runs differ: the user has other outputs of {_cells(other)}")
    return notes


def _words(text: str) -> list[str]:
    """Return what is compared: no colours, no spaces."""
    return output_text(text).split()


def _failed(cell: ShownCell, user: Ended) -> bool:
    """Return whether the cell has the error that ended the notebook among its outputs."""
    return bool(user.error) and cell.number == user.cells[-1].number


def _cells(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return f"code cell{'s' if len(numbers) > 1 else ''} {listed}"
