"""Messages on a vault's sockets: round trips, limits, and bytes that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol import vault_messages as vm

SESSION: list[vm.SessionMessage] = [
    vm.BodyChunk(),
    vm.BodyEnd(),
    vm.Call(1, "score", b"\x01"),
    vm.Construct(2, "Scorer", b""),
    vm.CallMethod(3, 2**62 - 1, "predict", b""),
    vm.GetAttribute(4, 0, "threshold"),
    vm.Release((1, 2)),
]
VAULT: list[vm.VaultMessage] = [
    vm.Loaded(),
    vm.LoadFailed("PackageTamperedError", "a chunk is not the one"),
    vm.Result(1, b"\xc0"),
    vm.Raised(1, "ValueError", None, "0123456789abcdef"),
    vm.Refused(1, "TypeError", "score() missing"),
]


def payload_of(message: vm.SessionMessage | vm.VaultMessage) -> bytes:
    return vm.encode_call_head(message)[vm.CALL_PREFIX_BYTES :]


@pytest.mark.parametrize("message", SESSION)
def test_messages_of_the_notebook_arrive_and_are_no_vaults(message: vm.SessionMessage) -> None:
    assert vm.decode_session_message(payload_of(message)) == message
    with pytest.raises(vm.VaultMessageError):
        vm.decode_vault_message(payload_of(message))


@pytest.mark.parametrize("message", VAULT)
def test_messages_of_the_vault_arrive_and_are_no_notebooks(message: vm.VaultMessage) -> None:
    assert vm.decode_vault_message(payload_of(message)) == message
    with pytest.raises(vm.VaultMessageError):
        vm.decode_session_message(payload_of(message))


@pytest.mark.parametrize(
    "message",
    [
        vm.VaultReady(),
        vm.VaultReady(("user of its own",)),
        vm.StartVault(b"h", 1),
        vm.VaultStarted(),
        vm.VaultFailed("K", "m"),
    ],
)
def test_control_messages_arrive(message: vm.ControlMessage) -> None:
    assert vm.decode_control(vm.encode_control(message)) == message


@given(st.binary(max_size=64))
def test_other_bytes_are_no_message(data: bytes) -> None:
    for decode in (vm.decode_session_message, vm.decode_vault_message, vm.decode_control):
        try:
            decode(data)
        except vm.VaultMessageError:
            continue


@pytest.mark.parametrize(
    "message",
    [
        vm.Call(0, "f", b""),
        vm.Call(1, "", b""),
        vm.Call(1, "f" * 257, b""),
        vm.CallMethod(1, -1, "m", b""),
        vm.CallMethod(1, 2**62, "m", b""),
        vm.Release(tuple(range(5000))),
    ],
)
def test_fields_out_of_range_are_refused(message: vm.SessionMessage) -> None:
    with pytest.raises(vm.VaultMessageError):
        vm.decode_session_message(payload_of(message))


def test_a_frames_head_tells_every_size() -> None:
    buffers = (memoryview(b"abc"), memoryview(bytes(70_000)))
    head = vm.encode_call_head(vm.BodyChunk(), buffers)
    length, count, sealed = vm.decode_call_prefix(head)
    assert not sealed
    in_memfd = vm.encode_call_head(vm.BodyChunk(), buffers, sealed=True)
    assert vm.decode_call_prefix(in_memfd) == (length, count, True)
    sizes = head[vm.CALL_PREFIX_BYTES : vm.CALL_PREFIX_BYTES + 8 * count]
    assert (length, count) == (len(head) - len(sizes) - vm.CALL_PREFIX_BYTES, 2)
    assert vm.decode_call_sizes(sizes, 70_003) == (3, 70_000)


def test_too_much_is_refused_before_anything_is_read_for_it() -> None:
    with pytest.raises(vm.VaultMessageError, match="4294967295 bytes"):
        vm.decode_call_prefix(b"\xff\xff\xff\xff\0\0\0\0")
    for count in (b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"):
        with pytest.raises(vm.VaultMessageError, match="2147483647 buffers"):
            vm.decode_call_prefix(b"\0\0\0\1" + count)
    with pytest.raises(vm.VaultMessageError, match="no buffers"):
        vm.decode_call_prefix(b"\0\0\0\1\x80\0\0\0")
    with pytest.raises(vm.VaultMessageError, match="at most 10 fit"):
        vm.decode_call_sizes((6).to_bytes(8, "big") * 2, 10)
