"""Functions of the user's that a package may call: run here, with data from there.

Source: docs/spec/vault_calls.md, "Callbacks".
"""

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_protocol.value_codec import ValueRefusedError, decode_value, encode_value
from enclave_protocol.vault_messages import (
    CallBack,
    CallbackFailed,
    CallbackReturned,
    VaultMessageError,
)

__all__ = ["UserFunctionError", "UserFunctions", "take_functions"]

_Function = Callable[..., Any]


class UserFunctionError(BaseException):
    """Carries what a function of the user's raised past the frames of this project.

    Attributes:
        original: The exception, with the user's frames and no others.
    """

    def __init__(self, original: BaseException) -> None:
        super().__init__()
        self.original = original


def take_functions(
    names: Sequence[str], declared: Mapping[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, _Function]]:
    """Return a call's arguments with None for each function, and the functions by parameter.

    Args:
        names: Names of the positional parameters.
        declared: The policy's callbacks. What is callable elsewhere stays, and is refused.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """
    taken: dict[str, _Function] = {}
    if not declared:
        return args, kwargs, taken
    left = list(args)
    for index, (name, value) in enumerate(zip(names, args, strict=False)):
        if name in declared and callable(value):
            taken[name], left[index] = value, None
    named = dict(kwargs)
    for name, value in kwargs.items():
        # Passed twice, by position as well: for the vault to refuse.
        if name in declared and callable(value) and name not in taken:
            taken[name], named[name] = value, None
    return tuple(left), named, taken


def _frames_of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """Return `trace` without our frames: the one that called, and the one that took Ctrl-C."""
    first = None if trace is None else trace.tb_next
    last = first
    while last is not None and last.tb_next is not None:
        if last.tb_next.tb_frame.f_code is CallInterrupt.on_interrupt.__code__:
            last.tb_next = None
            break
        last = last.tb_next
    return first


class UserFunctions:
    """The functions of one call.

    Args:
        functions: By the parameter they were passed for.

    Attributes:
        failure: What the function called last raised; None if it returned.
    """

    def __init__(self, functions: Mapping[str, _Function]) -> None:
        self.functions = functions
        self.failure: BaseException | None = None

    def answer(
        self, question: CallBack, contents: tuple[memoryview, ...], watch: CallInterrupt
    ) -> tuple[CallbackReturned | CallbackFailed, tuple[memoryview, ...]]:
        """Call the function that `question` asks for; return the answer to send.

        Args:
            question: From the vault.
            contents: Its buffers.
            watch: The call's: while the function runs, Ctrl-C is the function's.

        Raises:
            VaultMessageError: The vault asks what no vault may ask.
            ChildProcessError: The function forked, and this is the child.
        """
        function = self.functions.get(question.parameter)
        if function is None:
            raise VaultMessageError("the vault called a function that it was not given")
        try:
            arguments = decode_value(question.arguments, contents)
        except ValueRefusedError:
            raise VaultMessageError("the vault called a function with what is no data") from None
        if type(arguments) is not list:
            raise VaultMessageError("the vault called a function without arguments")
        self.failure = None
        if watch.happened:
            return CallbackFailed(question.number, interrupted=True), ()
        value = self._run(function, arguments, watch)
        if self.failure is None:
            try:
                encoded = encode_value(value)
                return CallbackReturned(question.number, encoded.header), encoded.buffers
            except ValueRefusedError as refusal:
                place = f"what the function passed as {question.parameter!r} returned"
                self.failure = refusal.inside(place)
        interrupted = isinstance(self.failure, KeyboardInterrupt)
        return CallbackFailed(question.number, interrupted=interrupted), ()

    def _run(self, function: _Function, arguments: list[Any], watch: CallInterrupt) -> object:
        """Return what `function` returns; what it raises is kept as `failure`."""
        pid = os.getpid()
        value: object = None
        try:
            watch.in_user_code = True
            value = function(*arguments)
            watch.in_user_code = False
        except BaseException as error:
            watch.in_user_code = False
            self.failure = error.with_traceback(_frames_of_the_user(error.__traceback__))
        if os.getpid() != pid:
            raise ChildProcessError("a fork in a function came back to its package")
        return value
