"""Attestation documents made in this process, under a root of the test's own, at any time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from enclave_infra.software_nsm.certificates import CertificateChain, Issuer, load_root
from enclave_infra.software_nsm.measurement import initial_pcrs
from enclave_infra.software_nsm.module import SoftwareModule
from enclave_protocol.attestation_document import encode_signed_document, signature_input
from enclave_protocol.nsm_messages import (
    AttestationReply,
    AttestationRequest,
    decode_response,
    encode_request,
)

__all__ = ["DocumentMaker", "make_documents"]

PCR0 = b"\x0a" * 48


@dataclass
class DocumentMaker:
    """A software NSM without its process; `now` is its clock."""

    now: datetime
    root: Issuer
    chain: CertificateChain
    module: SoftwareModule = field(init=False)
    debug: bool = False

    def __post_init__(self) -> None:
        pcrs = initial_pcrs(pcr0=PCR0, role_arn="arn", instance_id="i-1", debug=self.debug)
        self.module = SoftwareModule(
            module_id="i-1-enc1", pcrs=pcrs, chain=self.chain, clock=lambda: self.now
        )

    def document(self, **fields: bytes | None) -> bytes:
        """Return a document with these public_key, user_data, nonce."""
        request = encode_request(AttestationRequest(**fields))
        reply = decode_response(self.module.handle(request))
        assert isinstance(reply, AttestationReply)
        return reply.document

    def altered(
        self,
        change: Callable[[dict[str, Any]], Mapping[str, Any] | None],
        encode: Callable[[Any], bytes] = cbor2.dumps,
    ) -> bytes:
        """Return a document whose payload was changed before it was signed."""
        payload = cbor2.loads(cbor2.loads(self.document())[2])
        return self.sign(encode(change(payload) or payload))

    def sign(self, payload: bytes) -> bytes:
        """Return any payload under the leaf's good signature."""
        leaf, _ = self.chain.at(self.now)
        r, s = utils.decode_dss_signature(
            leaf.key.sign(signature_input(payload), ec.ECDSA(hashes.SHA384()))
        )
        return encode_signed_document(payload, r.to_bytes(48, "big") + s.to_bytes(48, "big"))


def make_documents(directory: Path, now: datetime, *, debug: bool = False) -> DocumentMaker:
    """Return a maker whose root is in `directory`."""
    root = load_root(directory)
    chain = CertificateChain(root, instance_id="i-1", module_id="i-1-enc1", region="us-east-1")
    return DocumentMaker(now=now, root=root, chain=chain, debug=debug)
