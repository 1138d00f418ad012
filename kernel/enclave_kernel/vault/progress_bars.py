"""tqdm in a package's code: its bars report numbers to the user, and draw nothing themselves.

Their text (description, unit, postfix) stays: it is the owner's, and often says too much.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final, Literal

__all__ = ["watch_tqdm"]

_MODULE: Final = "tqdm.std"
_NUMBER: Final = "_enclave_bar"

_NewBar = Callable[[], int]
_Report = Callable[[int, float, float | None, float | None, Literal[0, 1, 2]], None]


def watch_tqdm(new_bar: _NewBar, report: _Report) -> None:
    """Have every bar of tqdm's report, now if it is imported and otherwise when it is.

    Args:
        new_bar: Returns the number of another bar.
        report: Told the number, how much is done, the total, the rate a second, the state.
    """
    module = sys.modules.get(_MODULE)
    if module is not None:
        _take_over(module, new_bar, report)
        return
    sys.meta_path.insert(0, _Finder(lambda module: _take_over(module, new_bar, report)))


def _take_over(module: ModuleType, new_bar: _NewBar, report: _Report) -> None:
    bars = getattr(module, "tqdm", None)
    if not isinstance(bars, type) or not hasattr(bars, "display"):
        return  # not the tqdm we know: it draws to a stderr that leads nowhere

    def tell(self: Any, state: Literal[0, 1, 2]) -> None:
        try:
            known = self.format_dict
            number = vars(self).setdefault(_NUMBER, 0) or new_bar()
            vars(self)[_NUMBER] = number
            done, elapsed = float(known["n"]), float(known["elapsed"])
            total, rate = known["total"], known["rate"]
            if rate is None and elapsed > 0:
                rate = (done - float(known.get("initial") or 0)) / elapsed
            report(
                number,
                done,
                None if total is None else float(total),
                None if rate is None else float(rate),
                state,
            )
        except Exception:  # noqa: S110  # a bar must never be why a package's call fails
            pass

    def display(self: Any, msg: Any = None, pos: Any = None) -> bool:  # noqa: ARG001 (tqdm's)
        # `close` switches the bar off, then draws its last state, or "" in its place.
        closing = bool(getattr(self, "disable", False))
        tell(self, 0 if not closing else 1 if msg is None else 2)
        return True

    bars.display = display


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: calls back once the module that it waits for was imported."""

    def __init__(self, imported: Callable[[ModuleType], None]) -> None:
        self._imported = imported

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec that the other finders find, with a loader around its own."""
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._imported)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads as the real loader does, which is the module's in the end."""

    def __init__(
        self, loader: importlib.abc.Loader, imported: Callable[[ModuleType], None]
    ) -> None:
        self._loader = loader
        self._imported = imported

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Have the real loader make the module."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Have the real loader fill the module, then say that it is there."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._imported(module)
