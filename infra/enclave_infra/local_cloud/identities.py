"""Who may call the local cloud: two fixed identities, their keys in the open.

They separate the roles of owner and parent instance; they protect nothing, and work nowhere else.
"""

from dataclasses import dataclass
from typing import Final

from enclave_protocol.policy.caller import Caller

__all__ = [
    "HOST_ACCESS_KEY_ID",
    "HOST_SECRET_ACCESS_KEY",
    "IDENTITIES",
    "OWNER_ACCESS_KEY_ID",
    "OWNER_SECRET_ACCESS_KEY",
    "REGION",
    "Identity",
]

REGION: Final = "us-east-1"
OWNER_ACCESS_KEY_ID: Final = "LOCALCLOUDOWNER00001"
OWNER_SECRET_ACCESS_KEY: Final = "local-cloud-application-owner-not-a-secret"  # noqa: S105
HOST_ACCESS_KEY_ID: Final = "LOCALCLOUDPARENT0001"
HOST_SECRET_ACCESS_KEY: Final = "local-cloud-enclave-parent-not-a-secret"  # noqa: S105


@dataclass(frozen=True)
class Identity:
    """A role in an account; its IAM policy allows everything, so key policies decide."""

    access_key_id: str
    secret_access_key: str
    account: str
    role: str

    @property
    def role_arn(self) -> str:
        """What key policies name, and `aws:PrincipalArn`."""
        return f"arn:aws:iam::{self.account}:role/{self.role}"

    @property
    def session_arn(self) -> str:
        """How the caller appears in messages, as with an assumed role."""
        return f"arn:aws:sts::{self.account}:assumed-role/{self.role}/local"

    @property
    def caller(self) -> Caller:
        """Who it is to a key policy."""
        return Caller(self.role_arn, account=self.account, session_arn=self.session_arn)


IDENTITIES: Final = {
    identity.access_key_id: identity
    for identity in (
        Identity(OWNER_ACCESS_KEY_ID, OWNER_SECRET_ACCESS_KEY, "111111111111", "application-owner"),
        Identity(HOST_ACCESS_KEY_ID, HOST_SECRET_ACCESS_KEY, "222222222222", "enclave-parent"),
    )
}
