"""Which gateway may speak to this enclave: the first one, for as long as the enclave runs.

Nobody tells the enclave who that is, and whoever is root on the parent can be it. But any user of
the parent may open a connection to an enclave (AF_VSOCK asks for no right), and none of them but
the gateway's has its key.

Source: docs/spec/control.md, "Who is authenticated"; THREATS V-04.
"""

import hmac

from enclave_protocol.gateway_proof import Purpose, is_proof
from enclave_protocol.messages import Challenge, MessageError

__all__ = ["Admission"]


class Admission:
    """Lets the first gateway in, and no other.

    Args:
        enclave_key: SubjectPublicKeyInfo (DER) of the enclave's TLS key.
        required: A gateway without a key is refused in any case, as in an enclave; otherwise until
            one with a key has come.
    """

    def __init__(self, enclave_key: bytes, *, required: bool) -> None:
        self._enclave_key = enclave_key
        self._required = required
        self._gateway = b""

    def admit(self, challenge: Challenge, purpose: Purpose) -> bool:
        """Return if the sender of a challenge may use the stream; say whether it is known.

        Args:
            challenge: The first message in the stream's TLS.
            purpose: What it was opened for.

        Raises:
            MessageError: It is another gateway, or proves nothing.
        """
        if not challenge.gateway:
            if self._required or self._gateway:
                raise MessageError("a stream came from no gateway that is known")
            return False
        proven = is_proof(
            challenge.proof,
            challenge.gateway,
            purpose=purpose,
            nonce=challenge.nonce,
            enclave_key=self._enclave_key,
        )
        if not proven:
            raise MessageError("a gateway's proof is of another stream")
        if self._gateway and not hmac.compare_digest(self._gateway, challenge.gateway):
            raise MessageError("a stream came from another gateway than the first one")
        self._gateway = challenge.gateway
        return True
