"""The module itself: request bytes in, response bytes out, with the semantics of the real one.

PCR0..15 are locked from the start, PCR16..31 are the application's until locked; documents carry
the locked PCRs. Source: FACTS, "Nitro Secure Module"; nsm-check.rs of aws-nitro-enclaves-nsm-api.
"""

import os
from collections.abc import Callable, Mapping
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave_infra.software_nsm.certificates import CertificateChain
from enclave_infra.software_nsm.measurement import extend
from enclave_protocol.attestation_document import (
    PCR_BYTES,
    PCR_COUNT,
    SIGNATURE_BYTES,
    AttestationDocument,
    encode_payload,
    encode_signed_document,
    signature_input,
)
from enclave_protocol.nsm_messages import (
    MAX_REQUEST_BYTES,
    AttestationReply,
    AttestationRequest,
    DescribeNsm,
    DescribePcr,
    ExtendPcr,
    GetRandom,
    LockPcr,
    LockPcrs,
    NsmDescription,
    NsmFailure,
    NsmMessageError,
    PcrExtended,
    PcrLocked,
    PcrsLocked,
    PcrState,
    RandomBytes,
    Request,
    Response,
    decode_request,
    encode_response,
)

__all__ = ["SoftwareModule"]

_VERSION = (1, 0, 0)
_RANDOM_BYTES = 256
_FIRST_FREE_PCR = 16


class SoftwareModule:
    """One enclave's module.

    Args:
        module_id: `i-<instance>-enc<enclave>`.
        pcrs: Values of PCR0..15.
        chain: Certificates to sign with.
        clock: Returns the time, with time zone.
    """

    def __init__(
        self,
        *,
        module_id: str,
        pcrs: Mapping[int, bytes],
        chain: CertificateChain,
        clock: Callable[[], datetime],
    ) -> None:
        self._module_id = module_id
        self._pcrs = dict.fromkeys(range(PCR_COUNT), bytes(PCR_BYTES)) | dict(pcrs)
        self._locked = set(range(_FIRST_FREE_PCR))
        self._chain = chain
        self._clock = clock

    def handle(self, request: bytes) -> bytes:
        """Return the response to `request`; a malformed one gets an error response."""
        if len(request) > MAX_REQUEST_BYTES:
            return encode_response(NsmFailure("InputTooLarge"))
        try:
            return encode_response(self._answer(decode_request(request)))
        except NsmMessageError:
            return encode_response(NsmFailure("InvalidArgument"))

    def _answer(self, request: Request) -> Response:
        match request:
            case DescribeNsm():
                return NsmDescription(
                    version=_VERSION,
                    module_id=self._module_id,
                    max_pcrs=PCR_COUNT,
                    locked_pcrs=tuple(sorted(self._locked)),
                )
            case GetRandom():
                return RandomBytes(os.urandom(_RANDOM_BYTES))
            case AttestationRequest():
                return AttestationReply(self._attest(request))
            case LockPcrs(count):
                if count > PCR_COUNT:
                    return NsmFailure("InvalidIndex")
                self._locked |= set(range(count))
                return PcrsLocked()
            case DescribePcr(index) | ExtendPcr(index) | LockPcr(index) if index >= PCR_COUNT:
                return NsmFailure("InvalidIndex")
            case DescribePcr(index):
                return PcrState(index in self._locked, self._pcrs[index])
            case ExtendPcr(index) | LockPcr(index) if index in self._locked:
                return NsmFailure("ReadOnlyIndex")
            case ExtendPcr(index, data):
                self._pcrs[index] = extend(self._pcrs[index], data)
                return PcrExtended(self._pcrs[index])
            case LockPcr(index):
                self._locked.add(index)
                return PcrLocked()

    def _attest(self, request: AttestationRequest) -> bytes:
        now = self._clock()
        leaf, cabundle = self._chain.at(now)
        payload = encode_payload(
            AttestationDocument(
                module_id=self._module_id,
                timestamp=int(now.timestamp() * 1000),
                pcrs={index: self._pcrs[index] for index in sorted(self._locked)},
                certificate=leaf.der,
                cabundle=cabundle,
                public_key=request.public_key,
                user_data=request.user_data,
                nonce=request.nonce,
            )
        )
        signature = leaf.key.sign(signature_input(payload), ec.ECDSA(hashes.SHA384()))
        half = SIGNATURE_BYTES // 2
        raw = b"".join(
            number.to_bytes(half, "big") for number in utils.decode_dss_signature(signature)
        )
        return encode_signed_document(payload, raw)
