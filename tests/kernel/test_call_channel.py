"""Frames over a real socketpair: any cut of the stream, large buffers, limits, the end."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_kernel.call_channel import CallChannel, ChannelClosedError, FileCutError
from enclave_protocol.vault_messages import (
    BodyChunk,
    Release,
    Result,
    VaultMessageError,
    decode_session_message,
    decode_vault_message,
    encode_call_head,
)


@pytest.fixture
def pair() -> Iterator[tuple[CallChannel, CallChannel]]:
    left, right = (CallChannel(sock) for sock in socket.socketpair())
    yield left, right
    left.close()
    right.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 150_000), max_size=4), min_size=1, max_size=4),
    st.integers(1, 100_000),
)
def test_frames_survive_any_cut_of_the_stream(frames: list[list[int]], cut: int) -> None:
    sender, receiving = socket.socketpair()
    channel = CallChannel(receiving)
    contents = [
        tuple(memoryview(bytes([index % 251]) * size) for index, size in enumerate(sizes))
        for sizes in frames
    ]
    stream = b"".join(
        encode_call_head(Result(number + 1, b"v" * number), buffers) + b"".join(buffers)
        for number, buffers in enumerate(contents)
    )

    def send() -> None:
        for start in range(0, len(stream), cut):
            sender.sendall(stream[start : start + cut])

    thread = threading.Thread(target=send)
    thread.start()
    for number, buffers in enumerate(contents):
        payload, received = channel.receive()
        assert decode_vault_message(payload) == Result(number + 1, b"v" * number)
        assert [bytes(buffer) for buffer in received] == [bytes(buffer) for buffer in buffers]
        assert all(not buffer.readonly for buffer in received)
    thread.join()
    sender.close()
    channel.close()


def test_a_buffer_goes_where_it_is_wanted(pair: tuple[CallChannel, CallChannel]) -> None:
    left, right = pair
    place = memoryview(bytearray(100))
    left.send(BodyChunk(), (memoryview(b"abc"),))
    _, (received,) = right.receive(into=place)
    assert bytes(received) == b"abc" == bytes(place[:3])
    left.send(BodyChunk(), (memoryview(bytes(101)),))
    _, (received,) = right.receive(into=place)
    assert len(received) == 101


@pytest.mark.parametrize("folder", [None, "/proc/self"])
def test_a_part_of_a_file_is_sent_without_being_read(
    pair: tuple[CallChannel, CallChannel], tmp_path: Path, folder: str | None
) -> None:
    left, right = pair
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 400)
    # Of a file in /proc the kernel sends nothing by itself.
    path = path if folder is None else Path(folder, "environ")
    content = path.read_bytes()
    with path.open("rb", buffering=0) as file:
        file.read(10)
        left.send_file(BodyChunk(), file.fileno(), 50)
        left.send_file(BodyChunk(), file.fileno(), 30)
        parts = [bytes(right.receive()[1][0]) for _ in range(2)]
        assert parts == [content[10:60], content[60:90]]
        assert file.tell() == 90


def test_a_file_that_became_shorter_is_said_so(
    pair: tuple[CallChannel, CallChannel], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with path.open("rb", buffering=0) as file, pytest.raises(FileCutError):
        pair[0].send_file(BodyChunk(), file.fileno(), 101)
    pair[1].close()
    with path.open("rb", buffering=0) as file, pytest.raises(ChannelClosedError):
        pair[0].send_file(BodyChunk(), file.fileno(), 100)


def test_short_messages_need_no_waiting(pair: tuple[CallChannel, CallChannel]) -> None:
    left, right = pair
    sent = 0
    while left.send_now(Release(tuple(range(1000)))):
        sent += 1
    for _ in range(sent):
        message = decode_session_message(right.receive()[0])
        assert message == Release(tuple(range(1000)))
    assert sent > 10 and left.send_now(Release((7,)))
    assert decode_session_message(right.receive()[0]) == Release((7,))


def test_the_other_ends_end_is_an_error(pair: tuple[CallChannel, CallChannel]) -> None:
    left, right = pair
    left.close()
    with pytest.raises(ChannelClosedError):
        right.receive()
    with pytest.raises(ChannelClosedError):
        right.send(BodyChunk(), (memoryview(bytes(10)),))
    assert not right.send_now(Release(()))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 8,
        b"\0\0\0\1\0\0\0\1" + (1001).to_bytes(8, "big") + b"\x91",
    ],
)
def test_announcements_over_the_limit_are_refused(data: bytes) -> None:
    sender, receiving = socket.socketpair()
    channel = CallChannel(receiving, max_bulk_bytes=1000)
    sender.sendall(data)
    with pytest.raises(VaultMessageError):
        channel.receive()
    sender.close()
    channel.close()


def test_who_waits_for_long_takes_no_processor_time(pair: tuple[CallChannel, CallChannel]) -> None:
    left, right = pair
    answer = threading.Timer(0.5, lambda: left.send(Release(())))
    answer.start()
    began = time.thread_time()
    right.receive()
    assert time.thread_time() - began < 0.1
    answer.join()


def test_a_closed_channel_reads_no_file_that_took_its_number() -> None:
    ours, theirs = socket.socketpair()
    channel = CallChannel(ours)
    number = ours.fileno()
    channel.close()
    other, sender = socket.socketpair()
    if sender.fileno() == number:
        other, sender = sender, other
    try:
        os.dup2(other.fileno(), number)
        sender.send(encode_call_head(Release((1,))))
        with pytest.raises(OSError, match="Bad file descriptor"):
            channel.receive()
        assert os.read(number, 65536) == encode_call_head(Release((1,)))
    finally:
        if number != other.fileno():
            os.close(number)
        for sock in (theirs, other, sender):
            sock.close()
