"""Whether the labels of an index differ, found out in a time that nobody can stretch.

pandas asks its own hash tables, whose hashes have no secret in them: numbers chosen to collide keep
them busy for hours, where categories and levels are checked.

Source: docs/spec/vault_calls.md, "Work".
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from enclave_protocol.value_nodes import ValueRefusedError

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder

__all__ = ["check_distinct"]


def check_distinct(decoder: "Decoder", index: Any, used: int) -> None:
    """Check that no label is in `index` twice, and have pandas take our word for it.

    Args:
        decoder: Counts the work.
        index: Categories, or a level.
        used: How many places there are that a label could be at: no more labels come than that.

    Raises:
        ValueRefusedError: One is there twice, or there are too many, or finding out takes too long.
    """
    if len(index) > used:
        raise ValueRefusedError("categories or levels came with labels that nothing has")
    if isinstance(index.dtype, np.dtype) and index.dtype.kind != "O":
        distinct = _distinct_numbers(index.to_numpy())
    elif index.dtype.kind == "M" and hasattr(index, "asi8"):
        distinct = _distinct_numbers(index.asi8)
    else:
        labels = index.tolist()
        decoder.compare(labels)
        missing = sum(label != label for label in labels if type(label) is float)
        distinct = len(set(labels)) == len(labels) and missing <= 1
    if not distinct:
        raise ValueRefusedError("categories or levels came with a label twice")
    # Where pandas keeps what it found out itself; one that looks elsewhere only takes longer.
    index._cache["is_unique"] = True


def _distinct_numbers(values: "np.ndarray[Any, Any]") -> bool:
    if values.dtype.kind in "mM":
        values = values.view(np.int64)
    ordered = np.sort(values)
    missing = int(np.isnan(values).sum()) if values.dtype.kind in "fc" else 0
    return missing <= 1 and not bool((ordered[1:] == ordered[:-1]).any())
