"""Serves the calls of one notebook to one package; every check of the boundary is made here.

One call at a time, in the main thread, where SIGINT can reach the package's code.

Source: docs/spec/vault_calls.md, "Calls"; THREATS section D.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.trusted_clock import TrustedClock
from enclave_kernel.vault.budget import BudgetExceededError, CallBudget
from enclave_kernel.vault.call_output import CallOutput
from enclave_kernel.vault.callbacks import Callbacks
from enclave_kernel.vault.exports import ArgumentsError, Export, Exports
from enclave_kernel.vault.failures import raised
from enclave_kernel.vault.incidents import Incidents
from enclave_kernel.vault.live_objects import LiveObjects
from enclave_kernel.vault.open_iterator import OpenIterator, source_of
from enclave_kernel.vault.package_runner import PackageRunner
from enclave_kernel.vault.refusals import RefusedError, cannot_leave, result_too_large
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
    Items,
    IteratorOpened,
    NextItems,
    Raised,
    Refused,
    Release,
    Result,
    SessionMessage,
    VaultMessageError,
    decode_session_message,
)

__all__ = ["Dispatcher"]

CallRequest = Call | Construct | CallMethod | GetAttribute
Reply = tuple[Result | Raised | Refused | IteratorOpened | Items, tuple[memoryview, ...]]


class Dispatcher:
    """Answers requests until the notebook is gone.

    Args:
        channel: The socket to the notebook's process.
        exports: All that can be reached.
        policy: The owner's policy, from the verified label.
        output: What a call shows besides its result.
        incidents: Makes the ids of errors.
        clock: Tells whether the package has expired.
    """

    def __init__(
        self,
        channel: CallChannel,
        exports: Exports,
        policy: Policy,
        output: CallOutput,
        incidents: Incidents,
        clock: TrustedClock,
    ) -> None:
        self._channel = channel
        self._output = output
        self._exports = exports
        self._incidents = incidents
        self._budget = CallBudget(policy, clock)
        self._shown_errors = frozenset(policy.errors)
        self._max_result_bytes = policy.max_result_bytes
        self._live = LiveObjects()
        self._runner = PackageRunner()
        self._callbacks = Callbacks(channel, output, self._runner, policy)

    def serve(self) -> None:
        """Answer requests; returns when the notebook closed its end.

        Raises:
            VaultMessageError: It sent something that is no request.
        """
        self._runner.install()
        # A child of the package's must not keep the socket open when the vault dies.
        os.register_at_fork(after_in_child=self._leave_to_parent)
        while True:
            try:
                payload, buffers = self._channel.receive()
            except ChannelClosedError:
                return
            message = decode_session_message(payload)
            if self._callbacks.is_late(message):
                continue
            if isinstance(message, Release):
                self._live.release(message.handles, self._runner.run)
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

    def _answer(self, message: SessionMessage, buffers: tuple[memoryview, ...]) -> Reply:
        if not isinstance(message, CallRequest | NextItems):
            raise VaultMessageError("the notebook sent the body of a package that is loaded")
        try:
            if isinstance(message, NextItems):
                return self._next_items(message)
            return self._perform(message, buffers)
        except RefusedError as refusal:
            return Refused(message.request_id, refusal.kind, str(refusal)), ()
        except ArgumentsError as error:
            return Refused(message.request_id, "TypeError", str(error)), ()
        except ValueRefusedError as refusal:
            return Refused(message.request_id, "ValueRefusedError", str(refusal)), ()
        except BudgetExceededError as error:
            return Refused(message.request_id, "BudgetExceededError", str(error)), ()

    def _perform(self, request: CallRequest, buffers: tuple[memoryview, ...]) -> Reply:
        target, export = self._find(request)
        args: Sequence[Any] = ()
        kwargs: Mapping[str, Any] = {}
        if not isinstance(request, GetAttribute):
            sent, named = decode_arguments(request.arguments, buffers)
            if request.callbacks and export is not None:
                self._callbacks.place(request.callbacks, request.request_id, export, sent, named)
            args, kwargs = (sent, named) if export is None else export.arrange(sent, named)
            del sent, named
        self._refuse_if_interrupted()
        self._budget.take()
        value: object = None
        failure: Raised | None = None
        self._output.begin(request.request_id)
        self._callbacks.begin(request.request_id)
        try:
            value = self._runner.call(target, args, kwargs)
        except BaseException as error:  # SystemExit and what else a package may let out
            failure = self._raised(request.request_id, error)
        try:
            self._callbacks.end()
        finally:
            self._output.end()
        if failure is not None:
            return failure, ()
        # What a package made of its arguments must not keep them alive while the result travels.
        del args, kwargs
        if export is not None and export.returns == "iter":
            return self._open(request.request_id, value)
        encoded = self._encode(export, value)
        return Result(request.request_id, encoded.header), encoded.buffers

    def _raised(self, request_id: int, error: BaseException) -> Raised:
        return raised(request_id, error, self._shown_errors, self._incidents)

    def _refuse_if_interrupted(self) -> None:
        if self._runner.interrupted:
            # It came before the package's code ran. Whether it was meant for this request or for
            # one already answered, the notebook knows.
            self._runner.interrupted = False
            raise RefusedError("KeyboardInterrupt", "interrupted before the call")

    def _find(self, request: CallRequest) -> tuple[Callable[..., Any], Export | None]:
        """Return what the request asks for; a name in it is only ever a table's key."""
        if isinstance(request, Call):
            export = self._exports.functions.get(request.function)
            if export is None or export.target is None:
                raise RefusedError("AttributeError", "the package exports no such function")
            return export.target, export
        if isinstance(request, Construct):
            exported = self._exports.types.get(request.class_name)
            if exported is None:
                raise RefusedError("AttributeError", "the package exports no such class")
            if exported.init is None:
                raise RefusedError(
                    "TypeError", f"{exported.name} objects come only from the package's functions"
                )
            return exported.cls, exported.init
        exported, instance = self._live.object(request.handle)
        if isinstance(request, GetAttribute):
            if request.attribute not in exported.attributes:
                raise RefusedError(
                    "AttributeError", f"{exported.name} objects export no such attribute"
                )
            name = request.attribute
            return lambda: getattr(instance, name), None
        export = exported.methods.get(request.method)
        if export is None:
            raise RefusedError("AttributeError", f"{exported.name} objects export no such method")
        if export.target is not None:
            return functools.partial(export.target, instance), export
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
            return Handle(self._live.add(exported, item), exported.name)

        try:
            encoded = encode_value(value, handle_of=None if exported is None else handle_of)
        except ValueRefusedError:
            raise cannot_leave() from None
        size = len(encoded.header) + sum(len(buffer) for buffer in encoded.buffers)
        if self._max_result_bytes and size > self._max_result_bytes:
            raise result_too_large(size, self._max_result_bytes)
        return encoded

    def _open(self, request_id: int, value: object) -> Reply:
        source = source_of(value, self._runner.complete)
        if source is None:
            raise cannot_leave()
        try:
            step, finish = self._runner.run(source)
        except BaseException as error:
            # What Python says of an `__iter__` that does not return an iterator names its type.
            return raised(request_id, error, frozenset(), self._incidents), ()
        opened = OpenIterator(step, finish, self._encode_item, self._max_result_bytes)
        return IteratorOpened(request_id, self._live.add_iterator(opened)), ()

    def _encode_item(self, value: object) -> EncodedValue:
        try:
            return encode_value(value)
        except ValueRefusedError:
            raise cannot_leave() from None

    def _next_items(self, request: NextItems) -> Reply:
        iterator = self._live.iterator(request.handle)
        self._refuse_if_interrupted()
        self._budget.check_expiry()
        self._output.begin(request.request_id)
        batch = iterator.take(self._runner.run, lambda: self._runner.interrupted)
        self._output.end()
        if batch.ended or batch.failure is not None:
            self._live.drop_iterator(request.handle)
        if isinstance(batch.failure, RefusedError):
            raise batch.failure
        if batch.failure is not None:
            return self._raised(request.request_id, batch.failure), ()
        reply = Items(
            request.request_id,
            tuple(item.header for item in batch.items),
            tuple(len(item.buffers) for item in batch.items),
            batch.ended,
        )
        return reply, tuple(buffer for item in batch.items for buffer in item.buffers)
