"""Frames: cut from any portions, refused before anything is buffered for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.frame import MAX_FRAME_BYTES, FrameDecoder, FrameError, encode_frame


@given(payloads=st.lists(st.binary(max_size=200), max_size=12), cut=st.integers(1, 64))
def test_frames_survive_any_portioning(payloads: list[bytes], cut: int) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    decoder = FrameDecoder()
    found: list[bytes] = []
    for start in range(0, len(stream), cut):
        found += decoder.feed(stream[start : start + cut])
    decoder.close()
    assert found == payloads


def test_a_length_over_the_limit_is_refused_from_its_header_alone() -> None:
    with pytest.raises(FrameError, match="513 bytes was announced, at most 512"):
        FrameDecoder(512).feed((513).to_bytes(4, "big"))


def test_a_frame_as_long_as_the_limit_passes() -> None:
    assert FrameDecoder(512).feed(encode_frame(b"x" * 512)) == [b"x" * 512]


def test_a_payload_over_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError, match=str(MAX_FRAME_BYTES)):
        encode_frame(bytes(MAX_FRAME_BYTES + 1))


def test_a_stream_that_ends_inside_a_frame_is_broken() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(encode_frame(b"whole") + b"\0\0\0\5par") == [b"whole"]
    with pytest.raises(FrameError, match="7 bytes into a frame"):
        decoder.close()


def test_after_the_first_frame_the_rest_can_be_raw_bytes() -> None:
    decoder = FrameDecoder(64)
    raw = b"\xff\xff\xff\xff these bytes are no frame"
    assert decoder.feed(encode_frame(b"open") + raw, most=1) == [b"open"]
    assert decoder.take_rest() == raw
    decoder.close()
