"""Serves the calls of one notebook to one package; every check of the boundary is made here.

One call at a time, in the main thread, where SIGINT can reach the package's code.

Source: docs/spec/vault_calls.md, "Calls"; THREATS section D.
"""

import os
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.vault.budget import BudgetExceededError, CallBudget
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.exports import ArgumentsError, Export, ExportedType, Exports
from enclave_kernel.vault.failures import raised
from enclave_protocol.errors import EnclaveError
from enclave_protocol.manifest import Policy
from enclave_protocol.value_codec import (
    EncodedValue,
    Handle,
    ValueRefusedError,
    decode_arguments,
    encode_value,
)
from enclave_protocol.vault_messages import (
    Call,
    CallMethod,
    Construct,
    GetAttribute,
    Raised,
    Refused,
    Release,
    Result,
    SessionMessage,
    VaultMessageError,
    decode_session_message,
)

__all__ = ["Dispatcher"]

_MAX_HANDLES: Final = 65_536
_HANDLE_BITS: Final = 62

Request = Call | Construct | CallMethod | GetAttribute
Reply = tuple[Result | Raised | Refused, tuple[memoryview, ...]]


class _RefusedError(EnclaveError):
    """A request is not carried out; `kind` is what the notebook raises."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Dispatcher:
    """Answers requests until the notebook is gone.

    Args:
        channel: The socket to the notebook's process.
        exports: All that can be reached.
        policy: The owner's policy, from the verified label.
        output: What a call shows besides its result.

    Raises:
        BudgetExceededError: The policy cannot be understood.
    """

    def __init__(
        self, channel: CallChannel, exports: Exports, policy: Policy, output: CallOutput
    ) -> None:
        self._channel = channel
        self._output = output
        self._exports = exports
        self._budget = CallBudget(policy)
        self._shown_errors = frozenset(policy.errors)
        self._max_result_bytes = policy.max_result_bytes
        self._objects: dict[int, tuple[ExportedType, Any]] = {}
        self._pid = os.getpid()
        self._in_call = False
        self._interrupted = False

    def serve(self) -> None:
        """Answer requests; returns when the notebook closed its end.

        Raises:
            VaultMessageError: It sent something that is no request.
        """
        signal.signal(signal.SIGINT, self._on_interrupt)
        # A child of the package's must not keep the socket open when the vault dies.
        os.register_at_fork(after_in_child=self._leave_to_parent)
        while True:
            try:
                payload, buffers = self._channel.receive()
            except ChannelClosedError:
                return
            message = decode_session_message(payload)
            if isinstance(message, Release):
                for number in message.handles:
                    self._objects.pop(number, None)
                continue
            try:
                reply, contents = self._answer(message, buffers)
                # The arguments' memory is the package's to keep or not; we do not hold on to it.
                del buffers, message
                self._channel.send(reply, contents)
            except ChannelClosedError:
                return
            del reply, contents

    def _leave_to_parent(self) -> None:
        self._output.disable()
        self._channel.close()

    def _on_interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._in_call:
            raise KeyboardInterrupt
        self._interrupted = True

    def _answer(self, message: SessionMessage, buffers: tuple[memoryview, ...]) -> Reply:
        if not isinstance(message, Request):
            raise VaultMessageError("the notebook sent the body of a package that is loaded")
        try:
            return self._perform(message, buffers)
        except _RefusedError as refusal:
            return Refused(message.request_id, refusal.kind, str(refusal)), ()
        except ArgumentsError as error:
            return Refused(message.request_id, "TypeError", str(error)), ()
        except ValueRefusedError as refusal:
            return Refused(message.request_id, "ValueRefusedError", str(refusal)), ()
        except BudgetExceededError as error:
            return Refused(message.request_id, "BudgetExceededError", str(error)), ()

    def _perform(self, request: Request, buffers: tuple[memoryview, ...]) -> Reply:
        target, export = self._find(request)
        args: Sequence[Any] = ()
        kwargs: Mapping[str, Any] = {}
        if not isinstance(request, GetAttribute):
            sent, named = decode_arguments(request.arguments, buffers)
            args, kwargs = (sent, named) if export is None else export.arrange(sent, named)
            del sent, named
        if self._interrupted:
            # It came before the package's code ran. Whether it was meant for this request or for
            # one already answered, the notebook knows.
            self._interrupted = False
            raise _RefusedError("KeyboardInterrupt", "interrupted before the call")
        self._budget.take()
        value: object = None
        failure: Raised | None = None
        self._output.begin(request.request_id)
        try:
            self._in_call = True
            value = target(*args, **kwargs)
            self._in_call = False
        except BaseException as error:  # SystemExit and what else a package may let out
            # First of all: Python looks for signals at calls and jumps, and there was none yet.
            self._in_call = False
            failure = raised(request.request_id, error, self._shown_errors)
        if os.getpid() != self._pid:
            # A fork in the package's code came back here: there is one vault, and it is not this.
            os._exit(0)
        self._output.end()
        if failure is not None:
            return failure, ()
        # What a package made of its arguments must not keep them alive while the result travels.
        del args, kwargs
        encoded = self._encode(export, value)
        return Result(request.request_id, encoded.header), encoded.buffers

    def _find(self, request: Request) -> tuple[Callable[..., Any], Export | None]:
        """Return what the request asks for; a name in it is only ever a table's key."""
        if isinstance(request, Call):
            export = self._exports.functions.get(request.function)
            if export is None or export.target is None:
                raise _RefusedError("AttributeError", "the package exports no such function")
            return export.target, export
        if isinstance(request, Construct):
            exported = self._exports.types.get(request.class_name)
            if exported is None:
                raise _RefusedError("AttributeError", "the package exports no such class")
            if exported.init is None:
                raise _RefusedError(
                    "TypeError", f"{exported.name} objects come only from the package's functions"
                )
            return exported.cls, exported.init
        entry = self._objects.get(request.handle)
        if entry is None:
            raise _RefusedError("ReferenceError", "the vault has no such object (any more)")
        exported, instance = entry
        if isinstance(request, GetAttribute):
            if request.attribute not in exported.attributes:
                raise _RefusedError(
                    "AttributeError", f"{exported.name} objects export no such attribute"
                )
            name = request.attribute
            return lambda: getattr(instance, name), None
        export = exported.methods.get(request.method)
        if export is None:
            raise _RefusedError("AttributeError", f"{exported.name} objects export no such method")
        attribute = export.attribute
        return lambda *args, **kwargs: getattr(instance, attribute)(*args, **kwargs), export

    def _encode(self, export: Export | None, value: object) -> EncodedValue:
        returns = "value" if export is None else export.returns
        if returns == "none":
            value = None
        exported = self._exports.types.get(returns)

        def handle_of(item: object) -> Handle | None:
            if item is not value or exported is None or type(item) is not exported.cls:
                return None
            return self._keep(exported, item)

        try:
            encoded = encode_value(value, handle_of=None if exported is None else handle_of)
        except ValueRefusedError:
            # Which type it was is the owner's: say only that it stayed.
            raise _RefusedError(
                "EncryptedPackageError",
                "the call returned something that cannot leave the encrypted package; "
                "tell its owner",
            ) from None
        size = len(encoded.header) + sum(len(buffer) for buffer in encoded.buffers)
        if self._max_result_bytes and size > self._max_result_bytes:
            raise _RefusedError(
                "BudgetExceededError",
                f"the result has {size} bytes, the owner allows {self._max_result_bytes}",
            )
        return encoded

    def _keep(self, exported: ExportedType, instance: object) -> Handle:
        if len(self._objects) >= _MAX_HANDLES:
            raise _RefusedError(
                "BudgetExceededError",
                f"the notebook holds {_MAX_HANDLES} objects of this package: delete some",
            )
        number = secrets.randbits(_HANDLE_BITS)
        while number in self._objects:
            number = secrets.randbits(_HANDLE_BITS)
        self._objects[number] = exported, instance
        return Handle(number, exported.name)
