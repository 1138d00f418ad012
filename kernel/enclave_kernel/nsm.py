"""Client of the Nitro Secure Module: the real device, or the same bytes over a Unix socket.

Only the supervisor holds one. It must attest no key that it did not make itself (THREATS A-13),
and `/dev/nsm` must be mode 0600 before any other user's code runs (A-01).
Source: FACTS, "Nitro Secure Module".
"""

import ctypes
import fcntl
import os
import socket
import threading
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

from enclave_protocol.errors import EnclaveError
from enclave_protocol.nsm_messages import (
    MAX_RESPONSE_BYTES,
    AttestationReply,
    AttestationRequest,
    DescribeNsm,
    DescribePcr,
    GetRandom,
    NsmDescription,
    NsmFailure,
    PcrState,
    RandomBytes,
    Request,
    decode_response,
    encode_request,
)

__all__ = ["NsmClient", "NsmError", "NsmRefusedError", "NsmUnavailableError"]

_IOCTL_REQUEST: Final = 0xC0200A00  # _IOWR(0x0A, 0, 32 bytes)
_UNIX_PREFIX: Final = "unix:"
_SOCKET_TIMEOUT_S: Final = 10.0  # an attestation takes milliseconds
_MAX_RANDOM_BYTES: Final = 1 << 20

_Reply = TypeVar("_Reply")


class NsmError(EnclaveError):
    """The Nitro Secure Module could not serve a request."""


class NsmUnavailableError(NsmError):
    """The module cannot be reached."""


class NsmRefusedError(NsmError):
    """The module answered with an error code, in `code`."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the NSM refused the request with {code}; check index, size and locks")
        self.code = code


class _Transport(Protocol):
    def exchange(self, request: bytes) -> bytes: ...

    def close(self) -> None: ...


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """The ioctl's argument: two iovecs; the driver writes the response's length back."""

    _fields_ = (("request", _IoVec), ("response", _IoVec))


class _Device:
    """The driver's ioctl."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NsmUnavailableError(
                f"cannot open {path}: {error.strerror}; this runs only in an enclave, as root"
            ) from error
        self._path = path

    def exchange(self, request: bytes) -> bytes:
        """Return the driver's answer to one CBOR request."""
        outgoing = ctypes.create_string_buffer(request, len(request))
        incoming = ctypes.create_string_buffer(MAX_RESPONSE_BYTES)
        message = _Message(
            _IoVec(ctypes.addressof(outgoing), len(request)),
            _IoVec(ctypes.addressof(incoming), MAX_RESPONSE_BYTES),
        )
        try:
            fcntl.ioctl(self._fd, _IOCTL_REQUEST, message)
        except OSError as error:
            raise NsmUnavailableError(
                f"ioctl on {self._path} failed: {error.strerror}; it must be the NSM device"
            ) from error
        length = message.response.length
        if length > MAX_RESPONSE_BYTES:
            raise NsmUnavailableError(
                f"the NSM driver reports {length} bytes in a buffer of {MAX_RESPONSE_BYTES}"
            )
        return incoming.raw[:length]

    def close(self) -> None:
        os.close(self._fd)


class _Socket:
    """A Unix SOCK_SEQPACKET socket: one packet is one message."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_SOCKET_TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NsmUnavailableError(
                f"cannot connect to the software NSM at {path}: {error}; is it running?"
            ) from error

    def exchange(self, request: bytes) -> bytes:
        """Return the answer of the process that stands in for the driver."""
        try:
            self._socket.sendall(request)
            response = self._socket.recv(MAX_RESPONSE_BYTES + 1)
        except OSError as error:
            # A late answer must never be taken for the next request's.
            self._socket.close()
            raise NsmUnavailableError(
                f"the software NSM at {self._path} stopped answering: {error}; start it again"
            ) from error
        if not response:
            raise NsmUnavailableError(
                f"the software NSM at {self._path} closed the connection; start it again"
            )
        return response

    def close(self) -> None:
        self._socket.close()


class NsmClient:
    """One connection to the module; safe to use from several threads."""

    def __init__(self, transport: _Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()

    @classmethod
    def open(cls, endpoint: str) -> Self:
        """Connect to `endpoint`: a device such as "/dev/nsm", or "unix:PATH".

        Raises:
            NsmUnavailableError: It cannot be opened.
        """
        if endpoint.startswith(_UNIX_PREFIX):
            return cls(_Socket(endpoint.removeprefix(_UNIX_PREFIX)))
        return cls(_Device(endpoint))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the device or the socket; requests fail afterwards."""
        with self._lock:
            self._transport.close()

    def attest(
        self,
        *,
        public_key: bytes | None = None,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
    ) -> bytes:
        """Return a signed attestation document; each argument at most 512 bytes.

        Raises:
            NsmError: The module refused or is gone.
            NsmMessageError: An argument is too long, or the module's answer is malformed.
        """
        request = AttestationRequest(user_data=user_data, nonce=nonce, public_key=public_key)
        return self._ask(request, AttestationReply).document

    def describe_pcr(self, index: int) -> tuple[bool, bytes]:
        """Return whether PCR `index` (0..31) is locked, and its value.

        Raises:
            NsmError, NsmMessageError: As `attest`.
        """
        state = self._ask(DescribePcr(index), PcrState)
        return state.locked, state.data

    def describe(self) -> NsmDescription:
        """Return version, module id and locked PCRs.

        Raises:
            NsmError, NsmMessageError: As `attest`.
        """
        return self._ask(DescribeNsm(), NsmDescription)

    def random(self, count: int) -> bytes:
        """Return `count` random bytes (1 to 1 MiB) from the module.

        Raises:
            ValueError: `count` is out of range.
            NsmError, NsmMessageError: As `attest`.
        """
        if not 0 < count <= _MAX_RANDOM_BYTES:
            raise ValueError(f"count is {count}, expected 1 to {_MAX_RANDOM_BYTES}")
        collected = bytearray()
        while len(collected) < count:
            collected += self._ask(GetRandom(), RandomBytes).random
        return bytes(collected[:count])

    def _ask(self, request: Request, expected: type[_Reply]) -> _Reply:
        encoded = encode_request(request)
        with self._lock:
            response = decode_response(self._transport.exchange(encoded))
        if isinstance(response, NsmFailure):
            raise NsmRefusedError(response.code)
        if not isinstance(response, expected):
            raise NsmError(
                f"the NSM answered {type(request).__name__} with {type(response).__name__}"
            )
        return response
