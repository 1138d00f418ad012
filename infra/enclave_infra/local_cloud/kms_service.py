"""The local KMS: cryptographic operations done here, key management by moto behind the policy.

For every request on a key, in this order: find the key, evaluate its policy, check its state, act.
Source: DESIGN section 8; KMS API reference; FACTS, "KMS".
"""

import base64
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from moto.kms.models import Key

from enclave_infra.local_cloud import ciphertext
from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.cms_encoding import CmsShape, encrypt_cms
from enclave_infra.local_cloud.grants import check_new_grant, grant_allows
from enclave_infra.local_cloud.identities import Identity
from enclave_infra.local_cloud.key_policy import parse_key_policy
from enclave_infra.local_cloud.key_store import KeyStore
from enclave_infra.local_cloud.kms_parameters import KmsParameters
from enclave_infra.local_cloud.recipient import Recipient, RecipientVerifier
from enclave_protocol.policy.kms_request import kms_request
from enclave_protocol.policy.policy_document import Outcome
from enclave_protocol.policy.statement import PolicyRequest

__all__ = ["KmsService", "MotoCall"]

MotoCall = Callable[[str, dict[str, Any], str, str], dict[str, Any]]
"""(operation, parameters, account, region) -> answer; raises AwsError."""

_MAX_PLAINTEXT_BYTES: Final = 4096
_MAX_RANDOM_BYTES: Final = 1024
_READ: Final = frozenset(
    {
        *("DescribeKey", "GetKeyPolicy", "GetKeyRotationStatus", "ListKeyPolicies"),
        *("ListGrants", "ListKeyRotations", "ListResourceTags"),
    }
)
_MANAGE: Final = frozenset(
    {
        *("EnableKey", "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "PutKeyPolicy"),
        *("UpdateKeyDescription", "EnableKeyRotation", "DisableKeyRotation"),
        *("RevokeGrant", "RotateKeyOnDemand"),
        *("TagResource", "UntagResource"),
    }
)
_MANAGE_LIVING: Final = _MANAGE - {"CancelKeyDeletion", "PutKeyPolicy"}
_WITHOUT_KEY: Final = frozenset({"ListKeys", "ListAliases"})
# The rest of KMS works within the key's own account only.
_CROSS_ACCOUNT: Final = frozenset(
    {
        *("Decrypt", "Encrypt", "ReEncryptFrom", "ReEncryptTo", "DescribeKey", "CreateGrant"),
        *("GenerateDataKey", "GenerateDataKeyWithoutPlaintext"),
        *("GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"),
    }
)
_DATA_KEY_BYTES: Final = {"AES_256": 32, "AES_128": 16}
_CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "ECC_NIST_P256": ec.SECP256R1,
    "ECC_NIST_P384": ec.SECP384R1,
    "ECC_NIST_P521": ec.SECP521R1,
}
_RSA_BITS: Final = {"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class _Call:
    """One request: who, where, with which parameters and which attested enclave."""

    def __init__(
        self, caller: Identity, region: str, parameters: KmsParameters, recipient: Recipient | None
    ) -> None:
        self.caller = caller
        self.region = region
        self.parameters = parameters
        self.recipient = recipient


class KmsService:
    """Answers KMS operations.

    Args:
        store: The keys.
        verifier: Checks attestation documents.
        shape: The form of `CiphertextForRecipient`.
        moto: Runs an operation in moto.
    """

    def __init__(
        self, store: KeyStore, verifier: RecipientVerifier, shape: CmsShape, moto: MotoCall
    ) -> None:
        self._store = store
        self._verifier = verifier
        self._shape = shape
        self._moto = moto
        self._lock = threading.Lock()  # moto's backends are not made for threads
        self._own: dict[str, Callable[[_Call], dict[str, Any]]] = {
            "CreateKey": self._create_key,
            "CreateAlias": partial(self._set_alias, "CreateAlias"),
            "UpdateAlias": partial(self._set_alias, "UpdateAlias"),
            "DeleteAlias": self._delete_alias,
            "CreateGrant": self._create_grant,
            "Encrypt": self._encrypt,
            "Decrypt": self._decrypt,
            "ReEncrypt": self._re_encrypt,
            "GenerateDataKey": self._generate_data_key,
            "GenerateDataKeyWithoutPlaintext": self._generate_data_key_without_plaintext,
            "GenerateDataKeyPair": self._generate_pair,
            "GenerateDataKeyPairWithoutPlaintext": self._generate_pair_without_plaintext,
            "GenerateRandom": self._generate_random,
        }

    def handle(
        self, operation: str, parameters: KmsParameters, *, caller: Identity, region: str
    ) -> dict[str, Any]:
        """Return the answer to one request.

        Args:
            operation: Such as "Decrypt".
            parameters: As received.
            caller: Whose signature was verified.
            region: Of the signature.

        Raises:
            AwsError: KMS's own codes.
        """
        recipient = None
        if parameters.values.get("Recipient") is not None:
            recipient = self._verifier.verify(parameters.values["Recipient"])
        call = _Call(caller, region, parameters, recipient)
        with self._lock:
            own = self._own.get(operation)
            if own is not None:
                return own(call)
            if operation in _WITHOUT_KEY:
                return self._moto(operation, parameters.values, caller.account, region)
            if operation in _READ or operation in _MANAGE:
                return self._manage(call, operation)
        raise AwsError(
            "UnsupportedOperationException", f"the local cloud has no KMS operation {operation:.60}"
        )

    # Authorization

    def _authorize(
        self, call: _Call, key: Key, action: str, context: dict[str, str] | None = None
    ) -> None:
        """Evaluate the key's policy, and its grants where the policy says nothing.

        Raises:
            AwsError: AccessDeniedException.
        """
        policy = parse_key_policy(key.policy)
        outcome = policy.evaluate(self._request(call, key, action, context)).outcome
        if call.caller.account != key.account_id and action not in _CROSS_ACCOUNT:
            outcome = Outcome.IMPLICIT_DENY
        if outcome is Outcome.ALLOW or (
            outcome is Outcome.IMPLICIT_DENY
            and grant_allows(key, call.caller.caller, action, context)
        ):
            return
        reason = (
            "with an explicit deny in a resource-based policy"
            if outcome is Outcome.EXPLICIT_DENY
            else f"because no resource-based policy allows the kms:{action} action"
        )
        raise AwsError(
            "AccessDeniedException",
            f"User: {call.caller.session_arn} is not authorized to perform: kms:{action} on "
            f"resource: {key.arn} {reason}",
        )

    def _request(
        self, call: _Call, key: Key, action: str, context: dict[str, str] | None = None
    ) -> PolicyRequest:
        return kms_request(
            call.caller.caller,
            f"kms:{action}",
            key.arn,
            context=context,
            pcrs=None if call.recipient is None else call.recipient.pcrs,
            more={"aws:RequestedRegion": call.region, "aws:SecureTransport": "false"},
        )

    def _key(
        self, call: _Call, name: str, action: str, context: dict[str, str] | None = None
    ) -> Key:
        """Find a key, evaluate its policy, and check that it can be used for cryptography."""
        key = self._store.find(name, account=call.caller.account, region=call.region)
        self._authorize(call, key, action, context)
        if key.key_state == "Disabled":
            raise AwsError("DisabledException", f"{key.arn} is disabled.")
        if key.key_state != "Enabled":
            raise AwsError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        return key

    # Key management

    def _create_key(self, call: _Call) -> dict[str, Any]:
        values = call.parameters.values
        spec = values.get("KeySpec") or values.get("CustomerMasterKeySpec") or "SYMMETRIC_DEFAULT"
        usage = values.get("KeyUsage") or "ENCRYPT_DECRYPT"
        origin = values.get("Origin") or "AWS_KMS"
        plain = (spec, usage, origin) == ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "AWS_KMS")
        if not plain or values.get("MultiRegion"):
            raise AwsError(
                "UnsupportedOperationException",
                "the local cloud keeps symmetric single-region keys only",
            )
        policy = call.parameters.optional_text("Policy")
        if policy is not None:
            parse_key_policy(policy)
        chosen = {"KeySpec": spec, "KeyUsage": usage}
        answer = self._moto("CreateKey", values | chosen, call.caller.account, call.region)
        backend = self._store.backend(call.caller.account, call.region)
        key = backend.keys[answer["KeyMetadata"]["KeyId"]]
        try:
            self._check_lockout(call, key, key.policy)
        except AwsError:
            backend.delete_key(key.id)
            raise
        self._store.save()
        return answer

    def _manage(self, call: _Call, operation: str) -> dict[str, Any]:
        name = call.parameters.text("KeyId")
        key = self._store.find(name, account=call.caller.account, region=call.region)
        self._authorize(call, key, operation)
        values = call.parameters.values | {"KeyId": key.id}
        if operation == "DescribeKey":
            # moto guesses at the policy here, with less of it than was just evaluated.
            return dict(key.to_dict())
        if operation == "PutKeyPolicy":
            self._check_lockout(call, key, call.parameters.text("Policy"))
        if operation == "ScheduleKeyDeletion":
            call.parameters.number("PendingWindowInDays", 7, 30)
        if operation in _MANAGE_LIVING and key.key_state == "PendingDeletion":
            raise AwsError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        answer = self._moto(operation, values, key.account_id, call.region)
        if operation == "RotateKeyOnDemand":
            self._store.rotate(key)  # moto only notes it
        if operation in _MANAGE:
            self._store.save()
        return answer

    def _check_lockout(self, call: _Call, key: Key, policy: str) -> None:
        """Refuse a policy under which its author could not change it again."""
        parsed = parse_key_policy(policy)
        if call.parameters.values.get("BypassPolicyLockoutSafetyCheck") is True:
            return
        if not parsed.evaluate(self._request(call, key, "PutKeyPolicy")).allowed:
            raise AwsError(
                "MalformedPolicyDocumentException",
                "The new key policy will not allow you to update the key policy in the future.",
            )

    def _set_alias(self, operation: str, call: _Call) -> dict[str, Any]:
        alias = call.parameters.text("AliasName")
        target = call.parameters.text("TargetKeyId")
        key = self._store.find(target, account=call.caller.account, region=call.region)
        self._authorize(call, key, operation)
        values = {"AliasName": alias, "TargetKeyId": key.id}
        answer = self._moto(operation, values, key.account_id, call.region)
        self._store.save()
        return answer

    def _delete_alias(self, call: _Call) -> dict[str, Any]:
        alias = call.parameters.text("AliasName")
        key = self._store.find(alias, account=call.caller.account, region=call.region)
        self._authorize(call, key, "DeleteAlias")
        answer = self._moto("DeleteAlias", {"AliasName": alias}, key.account_id, call.region)
        self._store.save()
        return answer

    def _create_grant(self, call: _Call) -> dict[str, Any]:
        name = call.parameters.text("KeyId")
        key = self._store.find(name, account=call.caller.account, region=call.region)
        self._authorize(call, key, "CreateGrant")
        check_new_grant(call.parameters)
        values = call.parameters.values | {"KeyId": key.id}
        return self._moto("CreateGrant", values, key.account_id, call.region)

    # Cryptographic operations

    def _encrypt(self, call: _Call) -> dict[str, Any]:
        context = call.parameters.context()
        key = self._key(call, call.parameters.text("KeyId"), "Encrypt", context)
        plaintext = call.parameters.blob("Plaintext", _MAX_PLAINTEXT_BYTES)
        blob = ciphertext.wrap(key.key_material, key.arn, context, plaintext)
        return {"CiphertextBlob": _b64(blob), "KeyId": key.arn} | _symmetric()

    def _decrypt(self, call: _Call) -> dict[str, Any]:
        context = call.parameters.context()
        key, plaintext = self._open(call, "KeyId", "Decrypt", context)
        return {"KeyId": key.arn} | _symmetric() | self._for_caller(call, "Plaintext", plaintext)

    def _open(
        self, call: _Call, key_parameter: str, action: str, context: dict[str, str]
    ) -> tuple[Key, bytes]:
        blob = call.parameters.blob("CiphertextBlob", ciphertext.MAX_BLOB_BYTES)
        asked = call.parameters.optional_text(key_parameter)
        if asked is None:
            key = self._key(call, ciphertext.key_arn_of(blob), action, context)
        else:
            key = self._key(call, asked, action, context)
            if ciphertext.key_arn_of(blob) != key.arn:
                raise AwsError(
                    "IncorrectKeyException",
                    "The key ID in the request does not identify a CMK that can perform this "
                    "operation.",
                )
        return key, ciphertext.unwrap(self._store.materials(key), key.arn, context, blob)

    def _re_encrypt(self, call: _Call) -> dict[str, Any]:
        source_context = call.parameters.context("SourceEncryptionContext")
        context = call.parameters.context("DestinationEncryptionContext")
        source, plaintext = self._open(call, "SourceKeyId", "ReEncryptFrom", source_context)
        name = call.parameters.text("DestinationKeyId")
        key = self._key(call, name, "ReEncryptTo", context)
        blob = ciphertext.wrap(key.key_material, key.arn, context, plaintext)
        return {"CiphertextBlob": _b64(blob), "SourceKeyId": source.arn, "KeyId": key.arn}

    def _data_key(self, call: _Call, action: str) -> tuple[dict[str, Any], bytes]:
        context = call.parameters.context()
        key = self._key(call, call.parameters.text("KeyId"), action, context)
        spec = call.parameters.optional_text("KeySpec")
        size = call.parameters.number("NumberOfBytes", 1, _MAX_RANDOM_BYTES)
        sizes = {"AES_256": 32, "AES_128": 16}
        if (spec is None) == (size is None) or (spec is not None and spec not in sizes):
            raise AwsError(
                "ValidationException", "give KeySpec AES_256 or AES_128 or NumberOfBytes"
            )
        plaintext = os.urandom(size if spec is None and size is not None else sizes[spec or ""])
        blob = ciphertext.wrap(key.key_material, key.arn, context, plaintext)
        return {"CiphertextBlob": _b64(blob), "KeyId": key.arn}, plaintext

    def _generate_data_key(self, call: _Call) -> dict[str, Any]:
        answer, plaintext = self._data_key(call, "GenerateDataKey")
        return answer | self._for_caller(call, "Plaintext", plaintext)

    def _generate_data_key_without_plaintext(self, call: _Call) -> dict[str, Any]:
        return self._data_key(call, "GenerateDataKeyWithoutPlaintext")[0]

    def _pair(self, call: _Call, action: str) -> tuple[dict[str, Any], bytes]:
        context = call.parameters.context()
        key = self._key(call, call.parameters.text("KeyId"), action, context)
        spec = call.parameters.text("KeyPairSpec")
        pair: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if spec in _RSA_BITS:
            pair = rsa.generate_private_key(65537, _RSA_BITS[spec])
        elif spec in _CURVES:
            pair = ec.generate_private_key(_CURVES[spec]())
        else:
            raise AwsError("ValidationException", f"KeyPairSpec {spec:.40} is not supported")
        private = pair.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = pair.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        blob = ciphertext.wrap(key.key_material, key.arn, context, private)
        answer = {
            "PrivateKeyCiphertextBlob": _b64(blob),
            "PublicKey": _b64(public),
            "KeyId": key.arn,
            "KeyPairSpec": spec,
        }
        return answer, private

    def _generate_pair(self, call: _Call) -> dict[str, Any]:
        answer, private = self._pair(call, "GenerateDataKeyPair")
        return answer | self._for_caller(call, "PrivateKeyPlaintext", private)

    def _generate_pair_without_plaintext(self, call: _Call) -> dict[str, Any]:
        return self._pair(call, "GenerateDataKeyPairWithoutPlaintext")[0]

    def _generate_random(self, call: _Call) -> dict[str, Any]:
        size = call.parameters.number("NumberOfBytes", 1, _MAX_RANDOM_BYTES)
        if size is None:
            raise AwsError("ValidationException", "NumberOfBytes is required")
        return self._for_caller(call, "Plaintext", os.urandom(size))

    def _for_caller(self, call: _Call, name: str, plaintext: bytes) -> dict[str, str]:
        """Return the plaintext, or for an attested call only its encryption for the enclave."""
        if call.recipient is None:
            return {name: _b64(plaintext)}
        sealed = encrypt_cms(call.recipient.public_key, plaintext, self._shape)
        return {"CiphertextForRecipient": _b64(sealed)}


def _symmetric() -> dict[str, Any]:
    return {"EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
