"""Checks that the other end of a control stream is the enclave expected."""

from dataclasses import dataclass
from datetime import UTC, datetime

from enclave_parent_gateway.backends.base import load_backend
from enclave_parent_gateway.enclave_state import read_state
from enclave_parent_gateway.expected_pcrs import expected_pcrs, remembered_pcrs
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.attestation_document import PCR_BYTES, AttestationDocument
from enclave_protocol.channel_binding import verify_channel

__all__ = ["CheckedEnclave", "EnclaveCheck"]


@dataclass(frozen=True)
class CheckedEnclave:
    """A document that was believed, and against what."""

    document: AttestationDocument
    root: bytes
    expected: dict[int, frozenset[bytes]]


class EnclaveCheck:
    """The check, with root and expectations as they are when it is made.

    Args:
        paths: Of the enclave.
        backend: Its backend's name.
    """

    def __init__(self, paths: EnclavePaths, backend: str) -> None:
        self._paths = paths
        self._backend = load_backend(backend)

    def __call__(self, document: bytes, *, certificate: bytes, nonce: bytes) -> CheckedEnclave:
        """Verify one answer to a challenge. Reads files; takes some milliseconds.

        Args:
            document: The answer, untrusted.
            certificate: The peer's, from the TLS handshake, DER.
            nonce: What it was asked with.

        Raises:
            AttestationError: It is not the enclave expected; the class says which step failed.
            GatewayError: Nothing is expected, or there is no root to check against.
        """
        state = read_state(self._paths.state_file)
        debug = state is not None and state.debug and not remembered_pcrs(self._paths)
        if debug:
            # Started so by its administrator, who has pinned nothing: it proves nothing.
            expected = {0: frozenset({bytes(PCR_BYTES)})}
        else:
            expected = expected_pcrs(self._paths, state.measured_pcr0 if state else None)
        root = self._backend.attestation_root(self._paths)
        content = verify_channel(
            document,
            certificate=certificate,
            nonce=nonce,
            root=root,
            now=datetime.now(UTC),
            pcrs=expected,
            allow_debug=debug,
        )
        return CheckedEnclave(content, root, expected)
