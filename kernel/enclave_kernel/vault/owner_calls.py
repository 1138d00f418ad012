"""What a package's code may call of the vault it runs in. Outside a vault it does nothing.

The standard library only: it is imported before the vault has walls.
"""

from collections.abc import Callable

__all__ = ["connect", "progress"]

_reports: list[Callable[[float], None]] = []


def progress(fraction: float) -> None:
    """Show the user a bar with the share of the running call that is done.

    Shown unless the policy's `output` is "none". Cheap: it may be called as often as you like.

    Args:
        fraction: 0 to 1; what is outside counts as the nearer of the two.

    Raises:
        TypeError: `fraction` is no number.
        ValueError: It is NaN.
    """
    value = float(fraction)
    if value != value:
        raise ValueError("progress(fraction): expected 0 to 1, not NaN")
    for report in _reports:
        report(min(1.0, max(0.0, value)))


def connect(report: Callable[[float], None]) -> None:
    """Have `progress` tell `report`; for the vault, once."""
    _reports[:] = [report]
