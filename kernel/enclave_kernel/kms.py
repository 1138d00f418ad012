"""Release of a package's data key: KMS Decrypt with the enclave's attestation document.

The plaintext key exists in this process only: KMS encrypts its answer for an RSA key made for
this one request. The caller binds the key to the package's header by opening the body with it.
Source: DESIGN section 4, "Key release"; FACTS, "KMS"; THREATS A-04, A-06, A-07, A-14.
"""

import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization

from enclave_kernel.key_release_errors import (
    KmsUnreachableError,
)
from enclave_kernel.kms_refusals import refusal, unreachable
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.kms_cms import decrypt_cms
from enclave_protocol.messages import Credentials
from enclave_protocol.package_errors import PackageTamperedError
from enclave_protocol.package_header import PackageHeader

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_kms import KMSClient

__all__ = ["DATA_KEY_BYTES", "load_boto3", "release_data_key"]

DATA_KEY_BYTES: Final = 32
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 10
_ATTEMPTS: Final = 3
# Clients may be used by many threads, but only one at a time may make one.
_making_clients = threading.Lock()


def release_data_key(
    header: PackageHeader,
    *,
    nsm: NsmClient,
    keys: RsaPool,
    credentials: Credentials,
    endpoint_url: str | None,
    clock: TrustedClock,
    proxy_url: str | None = None,
) -> bytearray:
    """Return the data key of `header`'s package, 32 bytes; the caller wipes the only copy.

    What boto3 holds is the answer as KMS encrypted it; the private half that opens it is used
    once, and OpenSSL clears it as soon as this returns.

    1. Take an RSA-2048 pair that was never used.
    2. Attest its public half. The document says what time it is: an expired package ends here.
    3. KMS Decrypt with Recipient, KeyId and encryption context, all from the header.
    4. The answer names the same key, and carries no plaintext.
    5. Open the CMS with the private half.

    Args:
        header: The package's header; untrusted, hence the checks.
        nsm: The enclave's NSM.
        keys: The pool of unused pairs.
        credentials: For this one call; kept nowhere.
        endpoint_url: None: the public endpoint of the key's region (TLS ends here).
        clock: Set by the document, for the vault to go on with.
        proxy_url: Carries the connection where the enclave has no network; TLS goes through it.

    Raises:
        PackageExpiredError: The owner's policy ended its use.
        KeyReleaseError: A subclass for what went wrong; one line, says what to do.
        PackageTamperedError: Label or wrapped key altered, or of another package.
        PackageFormatError: The label names no KMS key.
        NsmError, CmsError: The NSM, or KMS's answer, is unusable.
    """
    arn = header.kms_key_arn
    region = header.region
    private_key = keys.get()  # step 1
    document = nsm.attest(  # step 2
        public_key=private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    clock.observe(document)
    clock.check(header.label.policy.expires)
    client = _client(region, credentials, endpoint_url, proxy_url)
    try:  # step 3
        answer = _decrypt(client, header, document, nsm, proxied=proxy_url is not None)
    finally:
        client.close()
    if "KeyId" not in answer:
        # boto3 takes an answer that was cut off, or is no JSON, for one without members.
        raise KmsUnreachableError(
            f"the answer of {client.meta.endpoint_url} was cut off, or is not KMS's: try again, "
            "and check the endpoint if it stays so"
        )
    if answer.get("KeyId") != arn or answer.get("Plaintext"):  # step 4
        raise KmsUnreachableError(
            f"the endpoint answered for key {answer.get('KeyId')!r:.200} or in plaintext, expected "
            f"{arn} for this enclave only: it is not KMS; check the endpoint"
        )
    data_key = decrypt_cms(private_key, answer.get("CiphertextForRecipient", b""))  # step 5
    if len(data_key) != DATA_KEY_BYTES:
        size = len(data_key)
        data_key[:] = bytes(size)
        raise PackageTamperedError(
            f"the wrapped key opens to {size} bytes, expected {DATA_KEY_BYTES}: no data key"
        )
    return data_key


def load_boto3() -> None:
    """Do ahead of time what a first client costs: imports, and KMS's description, 0.2 s."""
    _client("us-east-1", Credentials("none", "none"), None).close()


@cache
def _session() -> "Session":
    """Return what all clients share: the services' descriptions, and nothing of anybody's.

    It takes nothing from environment, files or the metadata service.
    """
    # Imported late: 0.2 s, and the supervisor must start fast.
    import boto3
    import botocore.session

    # An entry (config key, variable, default, conversion) without a variable reads no variable.
    nothing: Any = {
        "profile": (None, None, None, None),
        "config_file": (None, None, "/dev/null", None),
        "credentials_file": (None, None, "/dev/null", None),
        "data_path": (None, None, None, None),
    }
    return boto3.session.Session(botocore_session=botocore.session.Session(session_vars=nothing))


def _config(proxy_url: str | None) -> Any:
    from botocore.config import Config

    return Config(  # type: ignore[call-arg]  # the stubs lack ignore_configured_endpoint_urls
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        proxies={} if proxy_url is None else {"http": proxy_url, "https": proxy_url},
        ignore_configured_endpoint_urls=True,
        use_fips_endpoint=False,
        use_dualstack_endpoint=False,
        max_pool_connections=1,
    )


def _client(
    region: str,
    credentials: Credentials,
    endpoint_url: str | None,
    proxy_url: str | None = None,
) -> "KMSClient":
    """Return a client for one request, with these credentials and no others."""
    with _making_clients:
        session = _session()
        from botocore.exceptions import BotoCoreError

        try:
            return session.client(
                "kms",
                region_name=region,
                endpoint_url=endpoint_url,
                config=_config(proxy_url),
                verify=True,
                aws_access_key_id=credentials.access_key_id,
                aws_secret_access_key=credentials.secret_access_key,
                aws_session_token=credentials.session_token,
            )
        except (BotoCoreError, ValueError) as error:
            raise KmsUnreachableError(
                f"there is no KMS endpoint for region {region!r} and endpoint {endpoint_url!r}: "
                f"{error}"
            ) from error


def _decrypt(
    client: "KMSClient", header: PackageHeader, document: bytes, nsm: NsmClient, *, proxied: bool
) -> dict[str, Any]:
    """Step 3: the call, its failures translated."""
    from botocore.exceptions import BotoCoreError, ClientError

    arn = header.kms_key_arn
    try:
        return dict(
            client.decrypt(
                CiphertextBlob=header.wrapped_key,
                KeyId=arn,
                EncryptionContext=header.encryption_context,
                EncryptionAlgorithm="SYMMETRIC_DEFAULT",
                Recipient={
                    "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
                    "AttestationDocument": document,
                },
            )
        )
    except ClientError as error:
        details = error.response.get("Error", {})
        raise refusal(
            details.get("Code", "unknown"),
            details.get("Message", ""),
            arn=arn,
            pcr0=nsm.describe_pcr(0)[1],
            attempts=_ATTEMPTS,
        ) from None
    except (BotoCoreError, ValueError) as error:  # ValueError: base64 that is none
        kind = type(error).__name__
        raise unreachable(client.meta.endpoint_url, kind, proxied=proxied) from error
