"""An IPython shell that keeps what a cell shows instead of showing it.

The same shell that a notebook has, without its kernel: bars, top-level `await`, and tracebacks
look as they do there.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from enclave_kernel.trial.noted_client import incident_of, line_of
from enclave_protocol.trial_messages import MAX_COMPARED_BYTES, Ended, clipped
from enclave_protocol.value_codec import ValueRefusedError, encode_value

__all__ = ["Captured", "CellShell", "new_shell"]


class _LastValue(DisplayHook):
    """Keeps how a cell's value is shown."""

    shown: dict[str, Any] = {}  # noqa: RUF012 (replaced, never changed)

    def write_output_prompt(self) -> None:
        """Write nothing: there is a column of its own for it."""

    def write_format_data(
        self, format_dict: dict[str, Any], _md_dict: dict[str, Any] | None = None
    ) -> None:
        """Keep it."""
        self.shown = format_dict

    def finish_displayhook(self) -> None:
        """Write nothing."""
        self._is_active = False


class _Displays(DisplayPublisher):
    """Keeps what is displayed, each display in its last state."""

    kept: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (replaced for each cell)

    def publish(
        self, data: dict[str, Any], *_: Any, transient: dict[str, Any] | None = None, **__: Any
    ) -> None:
        """Keep `data`."""
        name = (transient or {}).get("display_id") or f"unnamed {len(self.kept)}"
        self.kept[name] = data


class Captured:
    """What was shown."""

    output = ""
    errors = ""
    value = ""


class CellShell(InteractiveShell):
    """The shell. Make it with `new_shell`."""

    displayhook_class = Type(_LastValue)
    display_pub_class = Type(_Displays)
    _traceback_text = ""

    def ask_exit(self) -> None:
        """End the cell: what `exit()` calls, which ends a kernel."""
        raise SystemExit

    def _showtraceback(self, _kind: type, _error: BaseException, stb: list[str]) -> None:
        self._traceback_text = "\n".join(stb)

    @contextlib.contextmanager
    def capture(self) -> Iterator["Captured"]:
        """Keep what is shown within; it can be read afterwards."""
        self._traceback_text = ""
        # Traits; their types are those of the configuration.
        hook: Any = self.displayhook
        publisher: Any = self.display_pub
        hook.shown = {}
        displays: dict[str, dict[str, Any]] = {}
        publisher.kept = displays
        captured = Captured()
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                yield captured
        finally:
            shown = [stdout.getvalue().removesuffix("\n"), *map(_described, displays.values())]
            captured.output = clipped("\n".join(text for text in shown if text))
            captured.errors = clipped(stderr.getvalue())
            captured.value = _described(hook.shown)

    def run(self, source: str) -> Ended:
        """Run a cell and return all that its user would see of it, calls left out."""
        with self.capture() as captured:
            outcome: Any = self.run_cell(source, store_history=True)  # type: ignore[no-untyped-call]
        error = outcome.error_before_exec or outcome.error_in_exec
        if error is not None:
            return Ended(
                output=captured.output,
                errors=captured.errors,
                error=clipped(line_of(error)),
                traceback=clipped(self._traceback_text),
                incident=incident_of(error),
            )
        value = outcome.result
        if value is None:
            return Ended(output=captured.output, errors=captured.errors)
        return Ended(
            output=captured.output,
            errors=captured.errors,
            result=clipped(captured.value),
            result_type=type(value).__qualname__,
            value=_data(value),
        )


def new_shell() -> CellShell:
    """Return this process's shell; `IPYTHONDIR` says where it may leave files."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    # A cell sees only what its user typed before.
    return CellShell.instance(config=config, user_ns={"__name__": "__main__"})


def _described(data: dict[str, Any]) -> str:
    """Return a display's text, and which pictures come with it."""
    lines = [str(data.get("text/plain", ""))]
    lines += [
        f"[{kind}, {len(content)} characters]"
        for kind, content in data.items()
        if kind.startswith("image/")
    ]
    return "\n".join(line for line in lines if line)


def _data(value: object) -> tuple[bytes, tuple[bytes, ...]] | None:
    """Return a value's header and buffers; None if it is no data, or too much."""
    try:
        encoded = encode_value(value)
    except ValueRefusedError:
        return None
    if len(encoded.header) + sum(len(buffer) for buffer in encoded.buffers) > MAX_COMPARED_BYTES:
        return None
    return encoded.header, tuple(bytes(buffer) for buffer in encoded.buffers)
