"""Length-prefixed frames: how messages are cut out of a byte stream. No I/O here.

Layout (docs/spec/frame.md): 4 bytes big-endian length, then that many bytes of payload.
"""

import struct

from enclave_protocol.errors import ProtocolError

__all__ = ["MAX_FRAME_BYTES", "FrameDecoder", "FrameError", "encode_frame"]

_LENGTH = struct.Struct(">I")

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""The most one frame may carry: a header and label of 256 KiB fit many times over, and a peer
that announces more is refused before anything is allocated."""


class FrameError(ProtocolError):
    """A frame is longer than the stream's limit, or the stream ended inside one."""


def encode_frame(payload: bytes | bytearray | memoryview) -> bytes:
    """Return `payload` with its length in front.

    Args:
        payload: 0 to `MAX_FRAME_BYTES` bytes.

    Raises:
        FrameError: The payload is longer than that.
    """
    size = len(payload)
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes was to be sent, at most {MAX_FRAME_BYTES} fit")
    return _LENGTH.pack(size) + bytes(payload)


class FrameDecoder:
    """Cuts frames out of bytes that arrive in any portions.

    Args:
        limit: The longest payload accepted, in bytes. A stream whose peer is not known yet
            starts with a small one.
    """

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview, *, most: int | None = None) -> list[bytes]:
        """Return the payloads that `data` completes, in arrival order.

        Args:
            data: Bytes as received, any length.
            most: Stop after so many frames; what follows them stays for `take_rest`, unread.

        Raises:
            FrameError: A header announces more than `limit` bytes; nothing is buffered for it.
        """
        self._buffer += data
        frames: list[bytes] = []
        offset = 0
        while len(frames) != most and len(self._buffer) - offset >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, offset)
            # Refuse before buffering: the peer is untrusted and could exhaust memory.
            if size > self.limit:
                raise FrameError(f"a frame of {size} bytes was announced, at most {self.limit} fit")
            end = offset + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[offset + _LENGTH.size : end]))
            offset = end
        if offset:
            del self._buffer[:offset]
        return frames

    def take_rest(self) -> bytes:
        """Return and forget the bytes behind the last whole frame.

        For a stream that changes its form after one frame (a Jupyter channel's raw bytes).
        """
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def close(self) -> None:
        """Say that the stream ended.

        Raises:
            FrameError: It ended inside a frame.
        """
        if self._buffer:
            raise FrameError(f"the stream ended {len(self._buffer)} bytes into a frame")
