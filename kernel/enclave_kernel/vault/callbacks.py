"""Functions of the user's, as the package sees them: it calls, and the notebook runs them.

Only while the call runs that they were passed to, one at a time, and told nothing but what the
owner declared.

Source: docs/spec/vault_calls.md, "Callbacks"; THREATS, C-01, C-05, C-06.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.callback_values import plain_argument
from enclave_kernel.vault.exports import ArgumentsError, Export
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.refusals import RefusedError
from enclave_protocol.callback_schema import CallbackParameter, parse_callback
from enclave_protocol.manifest import Policy
from enclave_protocol.value_codec import decode_value, encode_value
from enclave_protocol.vault_messages import (
    CALLBACK_TIMEOUT_S,
    CallBack,
    CallbackFailed,
    CallbackReturned,
    SessionMessage,
    VaultMessageError,
    decode_session_message,
)

__all__ = ["CallbackError", "Callbacks"]

_Answer = CallbackReturned | CallbackFailed
_PROTOCOL_BROKEN: Final = 1


class CallbackError(RuntimeError):
    """A function of the user's raised, or cannot be called now. Packages may catch it."""


class Callbacks:
    """Makes the functions of one call, and carries out what the package asks of them.

    Args:
        channel: The socket to the notebook's process.
        output: What the call shows: it comes before what a function shows.
        runner: Keeps interrupts away while a frame is on its way.
        policy: The owner's policy: the schemas, and how much may leave.
        timeout_s: How long a function may take.
    """

    def __init__(
        self,
        channel: CallChannel,
        output: CallOutput,
        runner: PackageRunner,
        policy: Policy,
        *,
        timeout_s: float = CALLBACK_TIMEOUT_S,
    ) -> None:
        self._channel = channel
        self._output = output
        self._runner = runner
        self._timeout_s = timeout_s
        self._max_bytes = policy.max_result_bytes
        self._schemas: Mapping[str, tuple[CallbackParameter, ...]] = {
            name: parse_callback(text) for name, text in policy.callbacks.items()
        }
        self._turn = threading.Lock()
        self._asking: int | None = None
        self._pid = os.getpid()
        self._request_id: int | None = None
        self._number = 0
        self._bytes = 0
        self._late: int | None = None
        self._overdue: str | None = None

    def place(
        self,
        names: Sequence[str],
        request_id: int,
        export: Export,
        args: list[Any],
        kwargs: dict[str, Any],
    ) -> None:
        """Put the user's functions among the arguments of a call.

        Args:
            names: Parameters for which the notebook passed one.
            request_id: The call's.
            export: What is called.
            args: Positional arguments, with None where a function belongs.
            kwargs: Keyword arguments, the same.

        Raises:
            ArgumentsError: The owner declares none for such a parameter, or it is not passed.
        """
        for name in names:
            places = export.positions
            index = places.index(name) if name in places else len(args)
            if name not in self._schemas or name not in export.parameters:
                raise ArgumentsError(f"argument {name!r} cannot be a function")
            if index < len(args) and args[index] is None:
                args[index] = self._function(name, request_id)
            elif name in kwargs and kwargs[name] is None:
                kwargs[name] = self._function(name, request_id)
            else:
                raise ArgumentsError(f"argument {name!r} was announced as a function and is none")

    def begin(self, request_id: int) -> None:
        """From now on the functions of this request can be called."""
        self._bytes = 0
        self._overdue = None
        self._request_id = request_id

    def end(self) -> None:
        """From now on none can be called; waits for one that is running in a thread.

        Raises:
            RefusedError: One took too long, so the call counts as failed.
        """
        if self._request_id is None:
            return
        with self._turn:
            self._request_id = None
        if self._overdue is not None:
            raise RefusedError(
                "CallbackTimeoutError",
                f"the function passed as {self._overdue!r} did not return within "
                f"{self._timeout_s:.0f} s",
            )

    def is_late(self, message: SessionMessage) -> bool:
        """Say whether this is the answer of a function nobody waits for any more."""
        if self._late is None or not isinstance(message, _Answer) or message.number != self._late:
            return False
        self._late = None
        return True

    def _function(self, parameter: str, request_id: int) -> Callable[..., Any]:
        schema = self._schemas[parameter]

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._ask(parameter, request_id, _arranged(parameter, schema, args, kwargs))

        call.__name__ = call.__qualname__ = parameter
        return call

    def _ask(self, parameter: str, request_id: int, values: list[Any]) -> Any:
        """Have the notebook call the function; return what it returned.

        Raises:
            CallbackError: The function raised, or cannot be called.
            KeyboardInterrupt: The user interrupted it, or the call.
        """
        encoded = encode_value(values)
        size = len(encoded.header) + sum(len(buffer) for buffer in encoded.buffers)
        if self._asking == threading.get_ident():
            # A finalizer, in the midst of the same thread's question.
            raise CallbackError("a function of the user's is being called")
        with self._turn:
            if os.getpid() != self._pid:
                raise CallbackError("a forked process cannot call functions of the user's")
            if self._request_id != request_id:
                raise CallbackError(f"the call that {parameter!r} was passed to has ended")
            if self._overdue is not None:
                raise CallbackError(f"{self._overdue!r} did not return in time")
            self._bytes += size
            if self._max_bytes and self._bytes > self._max_bytes:
                raise CallbackError(
                    f"{self._bytes} bytes for functions of the user's, the policy's "
                    f"max_result_bytes allows {self._max_bytes}"
                )
            self._number += 1
            question = CallBack(request_id, self._number, parameter, encoded.header)
            with self._runner.paused():
                self._asking = threading.get_ident()
                try:
                    answer, buffers = self._exchange(question, encoded.buffers)
                finally:
                    self._asking = None
        if answer is None:
            raise CallbackError(f"{parameter!r} did not return within {self._timeout_s:.0f} s")
        if isinstance(answer, CallbackFailed):
            if answer.interrupted:
                raise KeyboardInterrupt
            raise CallbackError(f"{parameter!r} raised an exception")
        return decode_value(answer.value, buffers)

    def _exchange(
        self, question: CallBack, contents: tuple[memoryview, ...]
    ) -> tuple[_Answer | None, tuple[memoryview, ...]]:
        try:
            with self._output.sending:
                self._output.send_waiting()
                self._channel.send(question, contents)
            deadline = time.monotonic() + self._timeout_s
            if not self._channel.wait(deadline - time.monotonic()):
                self._late, self._overdue = question.number, question.parameter
                return None, ()
            payload, buffers = self._channel.receive()
            answer = decode_session_message(payload)
            if not isinstance(answer, _Answer) or answer.number != question.number:
                raise VaultMessageError("the notebook answered something that was not asked")
        except (ChannelClosedError, VaultMessageError):
            # Nobody to answer to any more, and the package's code is above us: it could catch this.
            os._exit(_PROTOCOL_BROKEN)
        return answer, buffers


def _arranged(
    parameter: str,
    schema: tuple[CallbackParameter, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Any]:
    """Return the arguments in the schema's order.

    Raises:
        TypeError: They do not fit it. The package's own mistake.
    """
    names = [each.name for each in schema]
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys() or set(names) != {*given, *kwargs}:
        raise TypeError(
            f"{parameter}() is declared with the arguments {', '.join(names) or 'none'}"
        )
    given |= kwargs
    return [plain_argument(each, given[each.name]) for each in schema]
