"""The hash of a body does not depend on how it comes: any pieces, the last still being hashed."""

import random
from contextlib import closing

import pytest

from enclave_protocol.body_digest import SEGMENT_BYTES, BodyDigest
from tests.support.plain_package import body_digest

_BODY = random.Random(7).randbytes(5 * SEGMENT_BYTES + 12345)
_CUTS = (0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES, 40_000)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [0, 1, SEGMENT_BYTES, len(_BODY)])
def test_any_pieces(seed: int, size: int) -> None:
    rng = random.Random(seed)
    body = memoryview(_BODY)[:size]
    # As in a vault: two buffers in turn, the other one's contents change while one is hashed.
    buffers = [bytearray(2 * SEGMENT_BYTES) for _ in range(2)]
    with closing(BodyDigest()) as digest:
        left = body
        while left:
            piece = left[: rng.choice(_CUTS)]
            left = left[len(piece) :]
            buffers[0][: len(piece)] = piece
            digest.begin(memoryview(buffers[0])[: len(piece)])
            buffers.reverse()
            buffers[0][:] = bytes(len(buffers[0]))
        assert digest.finish() == body_digest(bytes(body))
