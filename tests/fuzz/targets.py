"""What strangers' bytes reach first. Each target raises where something else happens than is said.

A target takes any bytes and returns: the errors that its function documents are caught, others are
findings. Its seeds are inputs that are accepted, or nearly.
"""

import contextlib
import io
import random
import socket
import ssl
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import cbor2
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from enclave_kernel import session_messages
from enclave_kernel.call_channel import CallChannel
from enclave_kernel.session_messages import CellsPending, LoadPackage, decode_from_session
from enclave_parent_gateway.egress.client_hello import check_client_hello
from enclave_parent_gateway.egress.destination import Destination, parse_destination
from enclave_parent_gateway.egress.errors import ClientHelloError, EgressError
from enclave_parent_gateway.egress.http_head import parse_head
from enclave_protocol.attestation_document import decode_signed_document
from enclave_protocol.attestation_errors import AttestationError, ChannelBindingError
from enclave_protocol.attestation_verify import verify_attestation
from enclave_protocol.channel_binding import public_key_of
from enclave_protocol.eif import SIGNATURE, EifError, measure_eif
from enclave_protocol.errors import ProtocolError
from enclave_protocol.frame import FrameDecoder, FrameError, encode_frame
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.kms_cms import CmsError, decode_cms, decrypt_cms
from enclave_protocol.messages import (
    PROTOCOL_VERSION,
    Attest,
    Attested,
    Body,
    Challenge,
    Credentials,
    Envelope,
    KernelCells,
    LaunchKernel,
    MessageError,
    Open,
    OpenChannel,
    OpenControl,
    PendingCell,
    PinnedKey,
    PublisherKey,
    StatusRequest,
    decode_attested,
    decode_challenge,
    decode_envelope,
    decode_open,
    encode,
)
from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER
from enclave_protocol.package_errors import PackageError
from enclave_protocol.package_header import decode_header, encode_header
from enclave_protocol.package_label import check_label, decode_label, encode_label
from enclave_protocol.package_signature import PackageSignature
from enclave_protocol.value_codec import (
    EncodedValue,
    ValueRefusedError,
    decode_arguments,
    decode_value,
    encode_arguments,
    encode_value,
)
from enclave_protocol.vault_messages import (
    Call,
    Raised,
    Release,
    Result,
    VaultMessageError,
    decode_session_message,
    decode_vault_message,
    encode_call_head,
)
from tests.fuzz.mutations import mutate_bytes, mutate_header
from tests.fuzz.run_target import run_messages, run_seeds
from tests.fuzz.workspace_target import workspace, workspace_seeds
from tests.support.egress import client_hello
from tests.support.eif_files import CMDLINE, KERNEL, METADATA, RAMDISK, eif, sealed

__all__ = ["TARGETS", "Target"]

_VECTORS: Final = Path(__file__).parents[1] / "vectors"
_MAX_BULK: Final = 2**20
_MAX_BUFFERS: Final = 4


class Target(NamedTuple):
    """One function that meets bytes from outside.

    Attributes:
        run: Gives it some; raises if it does what it should not.
        seeds: Returns inputs to begin with.
        mutate: Makes other ones of them.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes], bytes] = mutate_bytes


def _join_value(encoded: EncodedValue, *, arguments: bool) -> bytes:
    buffers = encoded.buffers[:_MAX_BUFFERS]
    head = struct.pack(">BB", arguments, len(buffers))
    sizes = struct.pack(f">{len(buffers)}H", *map(len, buffers))
    return head + sizes + b"".join(buffers) + encoded.header


def _split_value(data: bytes) -> tuple[bool, list[memoryview], bytes]:
    arguments, number = (*data[:2], 0, 0)[:2]
    place = 2
    sizes = []
    for _ in range(number % (_MAX_BUFFERS + 1)):
        sizes.append(int.from_bytes(data[place : place + 2], "big"))
        place += 2
    buffers = []
    for size in sizes:
        buffers.append(memoryview(bytearray(data[place : place + size])))
        place += size
    return bool(arguments & 1), buffers, data[place:]


def _value(data: bytes) -> None:
    """Decode a value or arguments; what was accepted can be sent again, or is refused."""
    arguments, buffers, header = _split_value(data)
    with contextlib.suppress(ValueRefusedError):
        if arguments:
            encode_arguments(*decode_arguments(header, buffers))
        else:
            encode_value(decode_value(header, buffers))


@cache
def _value_seeds() -> list[bytes]:
    # Here, for they bring libraries that the other targets do without.
    from tests.support.value_examples import value_examples

    examples = value_examples()
    values = [_join_value(encode_value(value), arguments=False) for value in examples]
    calls = [encode_arguments((value, 1), {"key": [value]}) for value in examples[:12]]
    return [*values, *(_join_value(call, arguments=True) for call in calls)]


def _mutate_value(source: random.Random, data: bytes) -> bytes:
    if source.random() < 0.3:
        return mutate_bytes(source, data)
    _, _, header = _split_value(data)
    return data[: len(data) - len(header)] + mutate_header(source, header)


def _call_frames(data: bytes) -> None:
    """Read frames from a socket that brings `data` and ends; both sides' messages."""
    sender, receiver = socket.socketpair()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(data) + 4096)
    channel = CallChannel(receiver, max_bulk_bytes=_MAX_BULK)
    try:
        sender.setblocking(False)
        sender.send(data)
        sender.close()
        while True:
            payload, _ = channel.receive()
            for decode in (decode_session_message, decode_vault_message):
                with contextlib.suppress(VaultMessageError):
                    decode(payload)
    except ProtocolError:
        return
    finally:
        sender.close()
        channel.close()


def _call_frame_seeds() -> list[bytes]:
    none = encode_arguments((), {}).header
    buffers = (memoryview(bytes(70)), memoryview(b""))
    frames = [
        encode_call_head(Call(1, "score", none)),
        encode_call_head(Result(2, encode_value([1, "a"]).header), buffers) + bytes(70),
        encode_call_head(Raised(3, "ValueError", None, "0" * 16)),
        encode_call_head(Release((1, 2**61))),
        encode_call_head(Result(2, none), buffers, sealed=True),
    ]
    return [*frames, b"".join(frames[:4])]


def _package_header(data: bytes) -> None:
    """Decode the header of a package and everything in its label; verify its signature.

    A signature that verifies is of this label and digest, so it is one of the seeds'.
    """
    with contextlib.suppress(PackageError):
        header = decode_header(data)
        check_label(header.label)
        header.verify_signature()
        signed = (header.label_bytes, header.signature)
        if header.label.signer is not None and signed not in _signed_seeds():
            raise AssertionError("a signature of nobody's verified")


@cache
def _signed_seeds() -> list[tuple[bytes, PackageSignature | None]]:
    headers = [decode_header(seed) for seed in _package_seeds()]
    return [(header.label_bytes, header.signature) for header in headers]


def _label(data: bytes) -> None:
    """Decode a label: what is accepted is the one encoding of what it says."""
    with contextlib.suppress(PackageError):
        label = decode_label(data)
        check_label(label)
        if encode_label(label) != data:
            raise AssertionError("a label that is not canonical was accepted")


def _label_seeds() -> list[bytes]:
    return [decode_header(seed).label_bytes for seed in _package_seeds()]


def _mutate_label(source: random.Random, data: bytes) -> bytes:
    """Change some JSON values, so that the result is canonical JSON, or some bytes."""
    if source.random() < 0.3:
        return mutate_bytes(source, data)
    # What an earlier mutant was made of need not be JSON, or may be nested too deeply.
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
        root = msgspec.json.decode(data)
        for _ in range(source.randint(1, 3)):
            _change_value(source, root)
        return msgspec.json.encode(root, order="sorted")
    return mutate_bytes(source, data)


def _change_value(source: random.Random, root: object) -> None:
    place = root
    while isinstance(place, dict) and place:
        key = source.choice(sorted(place))
        inner = place[key]
        if not isinstance(inner, dict) or not inner or source.random() < 0.2:
            place[key] = source.choice(_JSON_VALUES)
            return
        place = inner


_JSON_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 2**53, 2**64 - 1, 0.5, "", "a", "\u202e\x1b[2J", "x" * 5000, [], ["a"]),
    *({}, {"a": "b"}, {"algorithm": "ed25519", "public_key": "00"}, "f(x, *, y=1)", "e\u0301"),
)


def _package_seeds() -> list[bytes]:
    from tests.support.example_package import FILES, KEY_ARN, make_label

    vector = (_VECTORS / "package" / "vector-1.0.encrypted").read_bytes()
    own = encode_header(make_label(FILES), KeySlot(KEY_ARN, b"wrapped"))
    signed = (_VECTORS / "package" / "signed-1.0.encrypted").read_bytes()
    return [decode_header(vector).raw, decode_header(signed).raw, own]


def _attestation(data: bytes) -> None:
    """Decode an attestation document, and verify it at its own time: no mutant may pass."""
    with contextlib.suppress(AttestationError):
        now = decode_signed_document(data).document.written
        verify_attestation(data, root=AWS_NITRO_ROOT_DER, now=now, allow_debug=True)
        if data.removeprefix(b"\xd2") not in _attestation_seeds():  # the tag is nobody's secret
            raise AssertionError("a document that AWS did not sign was accepted")


@cache
def _attestation_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted((_VECTORS / "attestation").glob("*.cbor"))]


@cache
def _cms_key() -> rsa.RSAPrivateKey:
    pem = (_VECTORS / "cms" / "edgebit-datakey.key.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _cms(data: bytes) -> None:
    """Decode and open an answer of KMS's."""
    with contextlib.suppress(CmsError):
        decode_cms(data)
        decrypt_cms(_cms_key(), data)


def _cms_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted((_VECTORS / "cms").glob("*.ber"))]


def _frames(data: bytes) -> None:
    """Cut frames; however the stream is cut on its way, they are the same."""
    whole, parts = FrameDecoder(1000), FrameDecoder(1000)
    found: list[list[bytes]] = [[], []]
    failed = [False, False]
    try:
        found[0] += whole.feed(data)
    except FrameError:
        failed[0] = True
    try:
        for place in range(0, len(data), 3):
            found[1] += parts.feed(data[place : place + 3])
    except FrameError:
        failed[1] = True
    if failed[0] != failed[1] or (not failed[0] and found[0] != found[1]):
        raise AssertionError("the cut of the stream made a difference")
    for decoder in (whole, parts):
        with contextlib.suppress(FrameError):
            decoder.close()


def _frame_seeds() -> list[bytes]:
    return [encode_frame(b"abc") + encode_frame(b""), encode_frame(bytes(1000))]


def _control(data: bytes) -> None:
    """Decode what opens a stream, what is said on it, and what a notebook's process says."""
    decoders: tuple[Callable[[bytes], object], ...] = (
        *(decode_open, decode_challenge, decode_attested, decode_envelope),
        decode_from_session,
    )
    for decode in decoders:
        with contextlib.suppress(MessageError):
            decode(data)


def _control_seeds() -> list[bytes]:
    launch = LaunchKernel("ab", bytes(32), "hmac-sha256", "/", {"TZ": "UTC"}, ("--debug",))
    cells = (PendingCell((b"id",), "request", "session"),)
    bodies: tuple[Body, ...] = (
        launch,
        StatusRequest(),
        Attest(bytes(32)),
        Credentials("id", "secret"),
        PublisherKey("ACME Analytics", "0f" * 32, pin=True),
        PinnedKey(""),
        KernelCells("ab", cells),
    )
    envelopes = [encode(Envelope(body, request_id=number)) for number, body in enumerate(bodies)]
    opens: list[Open] = [OpenControl(PROTOCOL_VERSION), OpenChannel("ab", "shell")]
    return [
        *(encode(one) for one in opens),
        encode(Challenge(bytes(32))),
        encode(Attested(b"x")),
        session_messages.encode(LoadPackage(1, "x.encrypted", b"header", unsigned=True)),
        session_messages.encode(CellsPending(cells)),
        *envelopes,
    ]


def _certificate(data: bytes) -> None:
    """Read the key of a TLS certificate that nobody has vouched for."""
    with contextlib.suppress(ChannelBindingError):
        public_key_of(data)


def _certificate_seeds() -> list[bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enclave")])
    start, end = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end)
    return [builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)]


def _eif(data: bytes) -> None:
    """Measure an image whose checksum is right, so that all of it is read."""
    for image in (data, sealed(data)):
        with contextlib.suppress(EifError):
            measure_eif(io.BytesIO(image))


def _eif_seeds() -> list[bytes]:
    parts = [(KERNEL, b"k" * 40), (CMDLINE, b"c"), (RAMDISK, b"r"), (RAMDISK, b"s")]
    certificate = _certificate_seeds()[0]
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
    signature = cbor2.dumps([{"signing_certificate": list(pem), "signature": [1]}])
    return [eif(parts), eif([*parts, (METADATA, b"{}"), (SIGNATURE, signature)])]


def _proxy_head(data: bytes) -> None:
    """What passes has one meaning: one head goes on, for the host that was checked."""
    with contextlib.suppress(EgressError):
        request = parse_head(data)
        if parse_destination(str(request.destination)) != request.destination:
            raise AssertionError("the destination does not read as what it is written as")
        forward = request.forward
        if forward is None:
            return
        lines = forward.split(b"\r\n")
        hosts = [line for line in lines if line.lower().startswith(b"host:")]
        if len(hosts) != 1 or request.destination.host.encode() not in hosts[0]:
            raise AssertionError("what goes on names another host")
        if lines[-2:] != [b"", b""] or b"" in lines[:-2] or any(map(_splits, lines)):
            raise AssertionError("more than one head goes on")


def _splits(line: bytes) -> bool:
    return any(byte < 0x20 and byte != 0x09 for byte in line) or any(byte > 0x7E for byte in line)


def _proxy_head_seeds() -> list[bytes]:
    return [
        b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nUser-Agent: x\r\n\r\n",
        b"POST http://a.example:8080/x?y HTTP/1.1\r\nHost: a.example:8080\r\n"
        b"Content-Length: 5\r\nConnection: close, x\r\nX: y\r\n\r\n",
        b"GET http://[2600::1]/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT 0x7f.1:443 HTTP/1.1\r\n\r\n",
    ]


def _client_hello(data: bytes) -> None:
    """What passes asks for the name that the tunnel was opened to, in so many letters."""
    with contextlib.suppress(ClientHelloError):
        whole = check_client_hello(data, Destination("good.example", 443))
        # Records may cut the name; in one record it has to be there as it is.
        one_record = int.from_bytes(data[3:5], "big") == len(data) - 5
        if whole and one_record and b"good.example" not in data.lower():
            raise AssertionError("a hello without the name passed")


def _client_hello_seeds() -> list[bytes]:
    return [client_hello("good.example"), client_hello("evil.example"), client_hello(None)]


TARGETS: Final = {
    "proxy_head": Target(_proxy_head, _proxy_head_seeds),
    "client_hello": Target(_client_hello, _client_hello_seeds),
    "value": Target(_value, _value_seeds, _mutate_value),
    "call_frames": Target(_call_frames, _call_frame_seeds),
    "package_header": Target(_package_header, _package_seeds),
    "label": Target(_label, _label_seeds, _mutate_label),
    "attestation": Target(_attestation, _attestation_seeds),
    "cms": Target(_cms, _cms_seeds),
    "frames": Target(_frames, _frame_seeds),
    "control": Target(_control, _control_seeds),
    "certificate": Target(_certificate, _certificate_seeds),
    "eif": Target(_eif, _eif_seeds),
    "workspace": Target(workspace, workspace_seeds),
    "run": Target(run_messages, run_seeds),
}
