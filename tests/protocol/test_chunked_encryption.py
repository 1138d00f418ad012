import itertools
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_protocol.chunked_encryption import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    PREFIX_BYTES,
    SEALED_CHUNK_BYTES,
    Decryptor,
    Encryptor,
    sealed_size,
)
from enclave_protocol.package_errors import (
    PackageError,
    PackageFormatError,
    PackageTamperedError,
    PackageTruncatedError,
)
from tests.support import plain_package as plain

KEY = secrets.token_bytes(32)
SALT = secrets.token_bytes(24)
MESSAGE = secrets.token_bytes(5 * CHUNK_BYTES)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


SIZES = st.one_of(
    st.integers(0, len(MESSAGE)),
    st.builds(
        lambda chunks, near: max(chunks * CHUNK_BYTES + near, 0),
        st.integers(0, 4),
        st.integers(-2, 2),
    ),
)
CUTS = st.lists(st.integers(0, len(MESSAGE) + 6 * 16), max_size=8)


@given(size=SIZES, cuts=CUTS, context=st.binary(max_size=80))
@settings(deadline=None)
def test_pieces_of_any_size_give_what_the_second_implementation_gives(
    size: int, cuts: list[int], context: bytes
) -> None:
    message = MESSAGE[:size]
    encryptor = Encryptor(KEY, context, SALT)
    sealed = bytearray()
    for piece in pieces(message, cuts):
        expected = encryptor.update_size(len(piece))
        part = encryptor.update(piece)
        assert len(part) == expected
        sealed += part
    sealed += encryptor.finalize()
    assert sealed == plain.seal(KEY, context, SALT, message)
    assert len(sealed) == sealed_size(size)


@given(size=SIZES, cuts=CUTS)
@settings(deadline=None)
def test_decryption_of_pieces_of_any_size(size: int, cuts: list[int]) -> None:
    sealed = plain.seal(KEY, b"context", SALT, MESSAGE[:size])
    decryptor = Decryptor(KEY, b"context")
    opened = bytearray()
    buffer = bytearray(len(sealed))
    for piece in pieces(sealed, cuts):
        expected = decryptor.update_size(len(piece))
        written = decryptor.update_into(piece, buffer)
        assert written == expected
        opened += buffer[:written]
    opened += decryptor.finalize()
    assert opened == MESSAGE[:size]


def test_input_size_completes_that_many_chunks() -> None:
    sealed = plain.seal(KEY, b"", SALT, MESSAGE)
    decryptor = Decryptor(KEY, b"")
    assert decryptor.input_size(1) == PREFIX_BYTES + SEALED_CHUNK_BYTES
    decryptor.update(sealed[:100])
    rest = sealed[100:]
    assert len(decryptor.update(rest[: decryptor.input_size(2) - 1])) == CHUNK_BYTES
    assert decryptor.input_size(1) == 1


def test_nothing_of_a_bad_chunk_reaches_the_buffer() -> None:
    sealed = bytearray(plain.seal(KEY, b"", SALT, MESSAGE))
    sealed[PREFIX_BYTES + SEALED_CHUNK_BYTES + 5] ^= 1  # the second chunk
    buffer = bytearray(b"\xaa" * (len(MESSAGE) + 7))
    decryptor = Decryptor(KEY, b"")
    with pytest.raises(PackageTamperedError):
        decryptor.update_into(sealed, buffer)
    assert buffer == bytes(len(MESSAGE)) + b"\xaa" * 7
    with pytest.raises(PackageTamperedError):
        decryptor.finalize()


def test_wrong_key_or_context_is_seen_before_any_chunk() -> None:
    sealed = plain.seal(KEY, b"a", SALT, MESSAGE)
    with pytest.raises(PackageTamperedError, match="does not fit"):
        Decryptor(KEY, b"b").update(sealed[:PREFIX_BYTES])
    with pytest.raises(PackageTamperedError, match="does not fit"):
        Decryptor(bytes(32), b"a").update(sealed[:PREFIX_BYTES])


def test_a_full_last_chunk_is_a_truncation() -> None:
    sealed = plain.seal(KEY, b"", SALT, MESSAGE)
    decryptor = Decryptor(KEY, b"")
    decryptor.update(sealed[:-16])
    with pytest.raises(PackageTruncatedError):
        decryptor.finalize()


def test_chunk_counter_does_not_wrap() -> None:
    encryptor = Encryptor(KEY, b"")
    encryptor._keys._counter = MAX_CHUNKS - 1
    encryptor.update(bytes(CHUNK_BYTES))
    with pytest.raises(PackageFormatError, match="chunks"):
        encryptor.finalize()


def test_misuse_is_refused() -> None:
    with pytest.raises(PackageFormatError, match="31 bytes"):
        Encryptor(bytes(31), b"")
    with pytest.raises(PackageFormatError, match="33 bytes"):
        Decryptor(bytes(33), b"")
    with pytest.raises(PackageFormatError, match="salt"):
        Encryptor(KEY, b"", b"short")
    encryptor = Encryptor(KEY, b"")
    with pytest.raises(PackageError, match="buffer"):
        encryptor.update_into(MESSAGE, bytearray(len(MESSAGE)))
    encryptor.finalize()
    with pytest.raises(PackageError, match="complete"):
        encryptor.update(b"")
    decryptor = Decryptor(KEY, b"")
    sealed = plain.seal(KEY, b"", SALT, MESSAGE)
    with pytest.raises(PackageError, match="buffer"):
        decryptor.update_into(sealed, bytearray(10))
    decryptor.update(sealed)
    decryptor.finalize()
    with pytest.raises(PackageError, match="complete"):
        decryptor.update(b"")


def test_salts_differ() -> None:
    first, second = (bytes(Encryptor(KEY, b"").update(b""))[:24] for _ in range(2))
    assert first != second
