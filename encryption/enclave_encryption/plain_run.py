"""The owner's side of `try`: the directory imported plainly, in a process of its own.

`python -I -B -m enclave_encryption.plain_run DESCRIPTOR`. What it prints goes to files that `try`
gave it as stdout and stderr. It is the owner's code with the owner's rights, and no boundary.
"""

import ast
import asyncio
import contextlib
import functools
import importlib
import inspect
import io
import linecache
import os
import queue
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, Final

import msgspec

from enclave_encryption.plain_errors import ended_by, error_line, whole_traceback
from enclave_encryption.value_differences import value_differences
from enclave_protocol.errors import EnclaveError
from enclave_protocol.frame import FrameDecoder, encode_frame
from enclave_protocol.manifest import Script
from enclave_protocol.trial_messages import (
    Compared,
    CompareValue,
    Ended,
    NotedCall,
    OpenPlain,
    RunCell,
    RunPlainNotebook,
    RunTrialScript,
    TrialMessageError,
    TrialReply,
    TrialRequest,
    clipped,
    decode_trial_request,
    encode_trial,
)
from enclave_protocol.value_codec import ValueRefusedError, decode_value, encode_value

__all__ = ["main"]

_READ_BYTES: Final = 64 * 1024
_NOTHING: Final = object()


class PlainSide:
    """The package, imported, and a namespace with its exports.

    Args:
        opening: What to import.
    """

    def __init__(self, opening: OpenPlain) -> None:
        self._opening = opening
        # As at a prompt: this file is not what the owner's code takes for the main program.
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self._namespace: dict[str, Any] = module.__dict__
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: object = _NOTHING
        self._calls = _NotedExports()

    def load(self) -> Ended:
        """Import the package and bind its exports."""
        sys.path.insert(0, self._opening.directory)
        if not self._opening.module:
            return Ended()
        return self._ended(self._load, "")

    def _load(self) -> object:
        module = importlib.import_module(self._opening.module)
        self._namespace[self._opening.module.rpartition(".")[2]] = module
        for name in self._opening.functions:
            self._namespace[name] = self._calls.function(name, getattr(module, name))
        for name, methods in self._opening.classes.items():
            self._namespace[name] = exported = getattr(module, name)
            self._calls.watch_class(name, exported, methods)
        return _NOTHING

    def run_cell(self, request: RunCell) -> Ended:
        """Run a cell; what its last line is, is its value."""
        lines = request.source.splitlines(keepends=True)
        # As for a file, so that tracebacks show the line.
        linecache.cache[request.name] = (len(request.source), None, lines, request.name)
        return self._ended(lambda: self._run(request), request.name)

    def _run(self, request: RunCell) -> object:
        tree = ast.parse(request.source, request.name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._execute(compile(tree, request.name, "exec", flags, dont_inherit=True))
        if not isinstance(last, ast.Expr):
            return _NOTHING
        expression = ast.Expression(last.value)
        return self._execute(compile(expression, request.name, "eval", flags, dont_inherit=True))

    def _execute(self, code: types.CodeType) -> object:
        # What the owner typed, in the owner's own process: it is what this process is for.
        value = eval(code, self._namespace)  # noqa: S307
        if not code.co_flags & inspect.CO_COROUTINE:
            return value
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(value)

    def run_script(self, request: RunTrialScript) -> Ended:
        """Run a script of the directory as `python FILE` would; `sys.exit` is its exit code.

        What is no Python is a compiled program, and is run as one.
        """
        sys.argv[:] = [request.file, *request.arguments]
        os.chdir(self._opening.directory)
        path = f"{self._opening.directory}/{request.file}"
        if Script(request.file).is_program:
            return self._ended(lambda: _as_program(path), path)
        return self._ended(lambda: _as_script(path), path)

    def run_notebook(self, request: RunPlainNotebook) -> Ended:
        """Run a notebook of the directory as Jupyter would."""
        # Late: only a trial of a notebook needs IPython on this side.
        from enclave_encryption.plain_notebook import run_notebook

        return run_notebook(request, self._opening.directory)

    def compare(self, request: CompareValue) -> Compared:
        """Say how the last value differs from the user's."""
        try:
            user = decode_value(request.header, [memoryview(part) for part in request.buffers])
        except ValueRefusedError as refusal:
            return Compared((), (f"the user's value cannot be read: {refusal}",))
        if self._last is _NOTHING:
            return Compared((), ("the user has a value, you have none",))
        everything = value_differences(self._last, user)
        try:
            crossed = _crossed(self._last)
        except ValueRefusedError:
            return Compared((), everything)
        dropped = set(value_differences(self._last, crossed))
        return Compared(
            tuple(line for line in everything if line in dropped),
            tuple(line for line in everything if line not in dropped),
        )

    def _ended(self, work: Callable[[], object], frame_name: str) -> Ended:
        """Do it, and say how it ended; nothing it raises ends this process."""
        self._last = _NOTHING
        try:
            self._last = value = work()
        except BaseException as error:
            ended = ended_by(error, frame_name)
            return msgspec.structs.replace(ended, calls=self._calls.take())
        finally:
            _flush()
        if value is _NOTHING or value is None:
            return Ended(exit_code=0, calls=self._calls.take())
        kind = type(value)
        refusal = ""
        try:
            encode_value(value)
        except ValueRefusedError as error:
            refusal = str(error)
        return Ended(
            result=clipped(_repr(value)),
            result_type=f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
            refusal=clipped(refusal),
            exit_code=0,
            calls=self._calls.take(),
        )


class _NotedExports:
    """Notes the calls that a cell makes of exports, and their tracebacks.

    Calls that exports make of each other are not noted: in an enclave they cross nothing.
    """

    def __init__(self) -> None:
        self._notes: list[NotedCall] = []
        self._depth = 0

    def take(self) -> tuple[NotedCall, ...]:
        """Return the calls since this was called last."""
        taken, self._notes = tuple(self._notes), []
        return taken

    def function(self, name: str, function: Any) -> Any:
        """Return what to bind for an exported function."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self._noted(name):
                    return await function(*args, **kwargs)

            return awaited

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._noted(name):
                return function(*args, **kwargs)

        return called

    def watch_class(self, name: str, cls: Any, methods: tuple[str, ...]) -> None:
        """Note the calls of these methods; the class stays the class it is."""
        for method in methods:
            code = inspect.getattr_static(cls, method, None)
            if inspect.isfunction(code):
                called = name if method == "__init__" else f".{method}"
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(cls, method, self.function(called, code))

    @contextlib.contextmanager
    def _noted(self, name: str) -> Any:
        self._depth += 1
        outermost = self._depth == 1
        try:
            yield
        except BaseException as error:
            if outermost:
                text = clipped(whole_traceback(error, ""))
                self._notes.append(NotedCall(name, clipped(error_line(error)), "", text))
            raise
        else:
            if outermost:
                self._notes.append(NotedCall(name))
        finally:
            self._depth -= 1


def _as_script(path: str) -> object:
    runpy.run_path(path, run_name="__main__")
    return _NOTHING


def _as_program(path: str) -> object:
    code = subprocess.run(sys.argv, executable=path, check=False).returncode
    raise SystemExit(code if code >= 0 else 128 - code)


def _crossed(value: object) -> object:
    encoded = encode_value(value)
    return decode_value(encoded.header, [memoryview(bytes(part)) for part in encoded.buffers])


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {error_line(error)}>"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def main(arguments: list[str]) -> None:
    """Answer requests until the other end closes.

    Args:
        arguments: The descriptor of the socket to `try`.
    """
    sock = socket.socket(fileno=int(arguments[0]))
    # What the code starts must not hold the socket open.
    sock.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As on a terminal: in its order with what other code writes to descriptor 1.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    requests: queue.SimpleQueue[TrialRequest] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sock, requests), daemon=True).start()
    opening = requests.get()
    if not isinstance(opening, OpenPlain):
        raise TrialMessageError("`try` did not begin with the directory")
    side = PlainSide(opening)
    reply: TrialReply = side.load()
    while True:
        sock.sendall(encode_frame(encode_trial(reply)))
        reply = _answer(side, requests.get())


def _answer(side: PlainSide, request: TrialRequest) -> TrialReply:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if isinstance(request, RunCell):
            return side.run_cell(request)
        if isinstance(request, RunTrialScript):
            return side.run_script(request)
        if isinstance(request, RunPlainNotebook):
            return side.run_notebook(request)
        if isinstance(request, CompareValue):
            return side.compare(request)
    except KeyboardInterrupt:
        return Ended(error="KeyboardInterrupt")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise TrialMessageError("`try` asked the owner's side for what it does not do")


def _read(sock: socket.socket, requests: "queue.SimpleQueue[TrialRequest]") -> None:
    """Hand on requests; when the other end is gone, end this process."""
    decoder = FrameDecoder()
    try:
        while data := sock.recv(_READ_BYTES):
            for frame in decoder.feed(data):
                requests.put(decode_trial_request(frame))
    except (OSError, EnclaveError):
        # Nothing that comes after it can be understood.
        return
    finally:
        # With what the owner's code started: `try` made a session of this process.
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
