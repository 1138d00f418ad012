"""The notebook's end of the socket to a vault: blocking, one call at a time, safe from threads.

Nothing here protects the package: the vault makes every check. The strict decoder and the errors
rebuilt from fixed tables protect the notebook.
"""

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from enclave_kernel.call_channel import CallChannel, ChannelClosedError
from enclave_kernel.session.call_display import CallDisplay
from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_kernel.session.package_failures import (
    CallbackError,
    VaultDiedError,
    rebuild_raised,
    rebuild_refused,
)
from enclave_kernel.session.user_functions import UserFunctionError, UserFunctions
from enclave_kernel.session.vault_link import LoadedVaultLike, VaultLink
from enclave_protocol.errors import EnclaveError, ProtocolError
from enclave_protocol.plain_text import plain_text
from enclave_protocol.value_codec import (
    Handle,
    ValueRefusedError,
    decode_value,
    encode_arguments,
)
from enclave_protocol.vault_messages import (
    CALLBACK_ERROR,
    CALLBACK_TIMEOUT_S,
    BodyChunk,
    BodyEnd,
    Call,
    CallBack,
    CallMethod,
    Construct,
    GetAttribute,
    Items,
    IteratorOpened,
    Loaded,
    LoadFailed,
    NextItems,
    Progress,
    Raised,
    Refused,
    Release,
    Result,
    Text,
    VaultMessageError,
    decode_vault_message,
)

__all__ = ["ITERATOR", "VaultClient"]

_MAX_RELEASED_AT_ONCE: Final = 1024
_TURN_S: Final = 1.0
_Functions = Mapping[str, Callable[..., Any]]
_NO_FUNCTIONS: Final[_Functions] = {}

ITERATOR: Final = ""
"""The class name of an iterator's `Handle`, which no exported class has."""

_Arguments = tuple[Sequence[object], dict[str, object]]
_Make = Callable[[int], Call | Construct | CallMethod | GetAttribute | NextItems]
_Answer = Result | IteratorOpened | Items
_Reply = tuple[_Answer | Raised | Refused, tuple[memoryview, ...]]


class VaultClient:
    """Calls into one vault.

    Args:
        vault: The vault; its socket is owned by the client from now on.
        package: How the package is shown, `<encrypted NAME VERSION>`.
        link: The way to the supervisor.
    """

    def __init__(self, vault: LoadedVaultLike, package: str, link: VaultLink) -> None:
        self.package = package
        self._vault_id = vault.vault_id
        self._link = link
        self._channel = CallChannel(vault.socket)
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._calling_back_since: float | None = None
        self._last_request = 0
        self._mid_frame = False
        self._released: deque[int] = deque()
        self._end: str | None = None
        # A process forked from the notebook must not write into its stream.
        self._pid = os.getpid()

    @property
    def alive(self) -> bool:
        """Whether calls can be made; False once the vault is known to have ended."""
        return self._end is None

    def send_body(self, descriptor: int, size: int) -> bool:
        """Send the next part of the encrypted body.

        Args:
            descriptor: Of the file, where the part begins.
            size: At most `BODY_CHUNK_BYTES` bytes.

        Returns:
            False when the vault has refused the package: call `finish_body` then.

        Raises:
            VaultDiedError: The vault is gone.
            FileCutError: The file has fewer bytes.
        """
        if select.select([self._channel], [], [], 0)[0]:
            return False
        try:
            self._channel.send_file(BodyChunk(), descriptor, size)
        except ChannelClosedError:
            raise self._died() from None
        return True

    def finish_body(self, waiting: Callable[[], None]) -> LoadFailed | None:
        """Say that the body is complete and return None once the package is ready.

        Args:
            waiting: Called about every second meanwhile.

        Returns:
            Why the vault refused the package.

        Raises:
            VaultDiedError: The vault is gone.
        """
        try:
            with contextlib.suppress(ChannelClosedError):
                self._channel.send(BodyEnd())
            while not select.select([self._channel], [], [], 1.0)[0]:
                waiting()
            message = decode_vault_message(self._channel.receive()[0])
        except (ChannelClosedError, VaultMessageError):
            raise self._died() from None
        if isinstance(message, LoadFailed):
            return message
        if not isinstance(message, Loaded):
            raise self._died()
        return None

    def call(
        self,
        function: str,
        arguments: _Arguments,
        names: Sequence[str],
        resolve: Callable[[Handle], object] | None = None,
        watch: CallInterrupt | None = None,
        functions: _Functions = _NO_FUNCTIONS,
    ) -> Any:
        """Call an exported function.

        Args:
            function: Its name.
            arguments: Positional and keyword arguments.
            names: Names of the positional parameters, for messages.
            resolve: Makes an object of a handle that comes back; None refuses handles.
            watch: From `new_watch`, for another thread to interrupt the call.
            functions: What the package may call meanwhile, by the parameter it was passed for.

        Raises:
            ValueRefusedError: An argument cannot go into the package.
            EncryptedPackageError: The package raised; or another exception that its owner shows.
            VaultDiedError: The vault is gone.
            UserFunctionError: One of `functions` raised, and with it the package.
            KeyboardInterrupt: The call was interrupted.
        """
        encoded = encode_arguments(*arguments, names=names)
        taken = tuple(functions)
        return self._request(
            lambda number: Call(number, function, encoded.header, taken),
            encoded.buffers,
            resolve,
            watch,
            functions,
        )

    def construct(
        self,
        class_name: str,
        arguments: _Arguments,
        names: Sequence[str],
        functions: _Functions = _NO_FUNCTIONS,
    ) -> Handle:
        """Make an object of an exported class. Arguments and errors as for `call`."""
        encoded = encode_arguments(*arguments, names=names)
        handle = self._request(
            lambda number: Construct(number, class_name, encoded.header, tuple(functions)),
            encoded.buffers,
            lambda handle: handle,
            functions=functions,
        )
        if type(handle) is not Handle:
            raise self._broke_protocol()
        return handle

    def call_method(
        self,
        handle: int,
        method: str,
        arguments: _Arguments,
        names: Sequence[str],
        resolve: Callable[[Handle], object] | None = None,
        watch: CallInterrupt | None = None,
        functions: _Functions = _NO_FUNCTIONS,
    ) -> Any:
        """Call a declared method of an object. Arguments and errors as for `call`."""
        encoded = encode_arguments(*arguments, names=names)
        return self._request(
            lambda number: CallMethod(number, handle, method, encoded.header, tuple(functions)),
            encoded.buffers,
            resolve,
            watch,
            functions,
        )

    def get_attribute(self, handle: int, attribute: str) -> Any:
        """Return a declared attribute of an object. Errors as for `call`."""
        return self._request(lambda number: GetAttribute(number, handle, attribute), (), None)

    def new_watch(self) -> CallInterrupt:
        """Return what interrupts one call when its `press` is called."""
        return CallInterrupt(self._interrupt_vault, self._kill_unresponsive)

    def release(self, handle: int) -> None:
        """Forget an object in the vault. Never waits: safe in finalizers, whoever runs them."""
        self._released.append(handle)
        if self._end is None and os.getpid() == self._pid and self._lock.acquire(blocking=False):
            # Held by a call, in this thread even: then the next call sends it.
            try:
                self._send_released()
            finally:
                self._lock.release()

    def close(self, reason: str = "it was unloaded") -> None:
        """End the vault; later calls raise VaultDiedError with `reason`."""
        if os.getpid() != self._pid:
            return
        self._end = self._end or reason
        self._link.unload(self._vault_id)
        if self._holder == threading.get_ident():
            # In a function that the package called: its call meets the end of the stream.
            return
        # A call in another thread now meets the end of the stream, and lets go of the lock.
        with self._lock:
            self._channel.close()

    def next_items(self, handle: int, watch: CallInterrupt | None = None) -> tuple[list[Any], bool]:
        """Return the next items of an iterator, and whether these are the last.

        Errors as for `call`. There may be none, even if there are more: when an interrupt of
        somebody else's came.
        """
        reply, contents = self._ask(lambda number: NextItems(number, handle), (), watch)
        if not isinstance(reply, Items) or len(reply.values) != len(reply.buffer_counts):
            raise self._broke_protocol()
        if sum(reply.buffer_counts) != len(contents):
            raise self._broke_protocol()
        items: list[Any] = []
        start = 0
        for value, count in zip(reply.values, reply.buffer_counts, strict=True):
            items.append(self._decode(value, contents[start : start + count], None))
            start += count
        return items, reply.ended

    def _request(
        self,
        make: _Make,
        buffers: tuple[memoryview, ...],
        resolve: Callable[[Handle], object] | None,
        watch: CallInterrupt | None = None,
        functions: _Functions = _NO_FUNCTIONS,
    ) -> Any:
        reply, contents = self._ask(make, buffers, watch, functions)
        if isinstance(reply, IteratorOpened) and resolve is not None:
            return resolve(Handle(reply.handle, ITERATOR))
        if not isinstance(reply, Result):
            raise self._broke_protocol()
        return self._decode(reply.value, contents, resolve)

    def _ask(
        self,
        make: _Make,
        buffers: tuple[memoryview, ...],
        watch: CallInterrupt | None,
        functions: _Functions = _NO_FUNCTIONS,
    ) -> tuple[_Answer, tuple[memoryview, ...]]:
        user = UserFunctions(functions)
        self._take_turn()
        try:
            self._holder = threading.get_ident()
            reply, contents = self._exchange(make, buffers, watch or self.new_watch(), user)
        finally:
            self._holder = None
            self._lock.release()
        if isinstance(reply, Raised):
            raise _raised_by(reply, user.failure, self.package)
        if isinstance(reply, Refused):
            raise rebuild_refused(reply)
        return reply, contents

    def _take_turn(self) -> None:
        """Take the lock; whoever has it keeps it for a whole call.

        Raises:
            CallbackError: The call in progress waits for this one, or may do so.
        """
        if self._holder == threading.get_ident():
            raise CallbackError(
                f"{self.package} waits for the function that it called, and cannot be used in it"
            )
        while not self._lock.acquire(timeout=_TURN_S):
            since = self._calling_back_since
            # The function may wait for this thread. One of them has to give in.
            if since is not None and time.monotonic() - since > CALLBACK_TIMEOUT_S:
                raise CallbackError(
                    f"{self.package} still waits for a function that it called in another thread"
                )

    def _decode(
        self,
        value: bytes,
        contents: tuple[memoryview, ...],
        resolve: Callable[[Handle], object] | None,
    ) -> Any:
        try:
            return decode_value(value, contents, resolve=resolve)
        except ValueRefusedError as refusal:
            raise VaultDiedError(
                f"{self.package} returned what no package may return: {plain_text(str(refusal))}"
            ) from None

    def _broke_protocol(self) -> VaultDiedError:
        return VaultDiedError(f"{self.package} broke the protocol: load it again")

    def _exchange(
        self,
        make: _Make,
        buffers: tuple[memoryview, ...],
        watch: CallInterrupt,
        user: UserFunctions,
    ) -> _Reply:
        """Send one request and return its reply; the lock is held."""
        if self._end is not None or os.getpid() != self._pid:
            raise self._died()
        # In the thread that called: what it shows belongs to the cell that this thread runs.
        display = CallDisplay()
        try:
            with watch:
                if watch.happened:
                    raise KeyboardInterrupt
                self._send_released()
                reply = self._round_trip(make, buffers, display, watch, user)
                while _came_too_early(reply[0]) and not watch.happened:
                    # An interrupt meant for an earlier call; this one did not begin.
                    reply = self._round_trip(make, buffers, display, watch, user)
                display.finish()
        except ProtocolError:
            error = self._died()
            if watch.happened:
                raise KeyboardInterrupt from None
            raise error from None
        except BaseException:
            if self._mid_frame:
                # Another signal's handler raised inside a frame: the stream's place is lost.
                self._end = self._end or "an exception broke into a call to it"
                self._died()
            raise
        if watch.happened:
            raise KeyboardInterrupt
        return reply

    def _round_trip(
        self,
        make: _Make,
        buffers: tuple[memoryview, ...],
        display: CallDisplay,
        watch: CallInterrupt,
        user: UserFunctions,
    ) -> _Reply:
        self._last_request = number = self._last_request + 1
        request = make(number)
        self._mid_frame = True
        self._channel.send(request, buffers)
        payload, contents = self._channel.receive()
        reply = decode_vault_message(payload)
        while isinstance(reply, Progress | Text | CallBack) and reply.request_id == number:
            if isinstance(reply, CallBack):
                display.finish()
                self._call_back(reply, contents, watch, user)
            elif contents:
                raise VaultMessageError("the vault sent output with buffers")
            else:
                display.show(reply)
            payload, contents = self._channel.receive()
            reply = decode_vault_message(payload)
        self._mid_frame = False
        if not isinstance(reply, _Answer | Raised | Refused) or reply.request_id != number:
            raise VaultMessageError("the vault answered something that was not asked")
        return reply, contents

    def _call_back(
        self,
        question: CallBack,
        contents: tuple[memoryview, ...],
        watch: CallInterrupt,
        user: UserFunctions,
    ) -> None:
        self._calling_back_since = time.monotonic()
        try:
            answer, buffers = user.answer(question, contents, watch)
        finally:
            self._calling_back_since = None
        if self._end is not None:
            # Unloaded by the function; what the vault still says is nobody's.
            raise self._died()
        self._channel.send(answer, buffers)

    def _send_released(self) -> None:
        while self._released:
            count = min(len(self._released), _MAX_RELEASED_AT_ONCE)
            numbers = tuple(self._released.popleft() for _ in range(count))
            if not self._channel.send_now(Release(numbers)):
                self._released.extend(numbers)
                return

    def _interrupt_vault(self) -> None:
        # A supervisor that is gone takes the vault with it: the call ends all the same.
        with contextlib.suppress(EnclaveError):
            self._link.interrupt(self._vault_id)

    def _kill_unresponsive(self) -> None:
        self._end = "it did not react to an interrupt and was stopped"
        self._link.unload(self._vault_id)

    def _died(self) -> VaultDiedError:
        """Return the error that says why no call can be made; ends what is left of the vault."""
        if os.getpid() != self._pid:
            return VaultDiedError(f"{self.package} cannot be used in a forked process")
        if self._end is None:
            reason = self._link.death_reason(self._vault_id)
            self._end = reason or "the enclave did not say why"
        self._link.unload(self._vault_id)
        self._channel.close()
        return VaultDiedError(
            f"{self.package} has ended ({self._end}): load it again with %load_encrypted"
        )


def _came_too_early(reply: _Answer | Raised | Refused) -> bool:
    return isinstance(reply, Refused) and reply.kind == "KeyboardInterrupt"


def _raised_by(reply: Raised, failure: BaseException | None, package: str) -> BaseException:
    """Return the exception for a call that raised.

    Args:
        reply: What the vault told.
        failure: What the user's function raised that the package called last, if it did.
        package: How the package is shown.
    """
    if failure is not None:
        same = reply.type_name == CALLBACK_ERROR or (
            reply.type_name == "KeyboardInterrupt" and isinstance(failure, KeyboardInterrupt)
        )
        if same:
            return UserFunctionError(failure)
    error = rebuild_raised(reply, package)
    # The package made something else of it: the user sees both.
    error.__cause__ = failure
    return error
