"""Who made a package: its signature, and the key that this user has pinned for the publisher.

The enclave remembers nothing. The pins are kept on the parent, which is the user's own side and
untrusted by the owner only; what they mean is decided here, before anything of a package is used.

Source: docs/decisions/publisher_signature.md; THREATS A-05.
"""

from collections.abc import Awaitable, Callable

from enclave_kernel.publisher_errors import changed, unsigned
from enclave_protocol.messages import Body, MessageError, PinnedKey, PublisherKey
from enclave_protocol.package_header import PackageHeader

__all__ = ["PublisherCheck"]


class PublisherCheck:
    """Verifies signatures, and compares their keys with the pins.

    Args:
        ask: Asks the gateway.
    """

    def __init__(self, ask: Callable[[PublisherKey], Awaitable[Body]]) -> None:
        self._ask = ask

    async def check(self, header: PackageHeader, *, allow_unsigned: bool) -> bool:
        """Check who made a package, before its key is asked for.

        1. Without a signature: only if the user said so.
        2. The signature is of this label and a body digest; the vault checks the body's.
        3. The key is the pinned one, or the publisher is new.

        Returns:
            Whether the publisher is new: `pin` it once the key was released.

        Raises:
            UnsignedPackageError: 1 fails.
            PackageSignatureError: 2 fails.
            PublisherChangedError: 3 fails.
            EnclaveError: The gateway does not answer.
        """
        signer = header.label.signer
        if signer is None:
            if not allow_unsigned:
                raise unsigned()
            return False
        header.verify_signature()
        return await self._compare(header, pin=False)

    async def pin(self, header: PackageHeader) -> None:
        """Pin the key of a new publisher, whose package got its data key.

        Raises:
            PublisherChangedError: Another key was pinned meanwhile.
            EnclaveError: The gateway does not answer, or cannot keep it.
        """
        await self._compare(header, pin=True)

    async def _compare(self, header: PackageHeader, *, pin: bool) -> bool:
        signer, publisher = header.label.signer, header.label.package.publisher
        if signer is None:
            return False
        found = signer.fingerprint
        answer = await self._ask(PublisherKey(publisher=publisher, fingerprint=found, pin=pin))
        if not isinstance(answer, PinnedKey):
            raise MessageError("the gateway's answer about a publisher holds no key")
        if answer.fingerprint and answer.fingerprint != found:
            raise changed(publisher, pinned=answer.fingerprint, found=found)
        if pin and not answer.fingerprint:
            raise MessageError("the gateway did not pin a publisher's key")
        return not answer.fingerprint
