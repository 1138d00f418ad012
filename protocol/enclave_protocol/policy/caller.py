"""Who makes a request, and which principals of a policy name them.

Source: IAM user guide, "AWS JSON policy elements: Principal".
"""

import re
from dataclasses import dataclass
from typing import Final

from enclave_protocol.policy.policy_error import PolicyError

__all__ = ["Caller", "account_of"]

_ARN: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]{0,20}):(?P<service>iam|sts)::(?P<account>\d{12}):"
    r"(?P<resource>root|(role|user|assumed-role|federated-user)/[\x21-\x7e]{1,600})",
    re.ASCII,
)
_ACCOUNT: Final = re.compile(r"\d{12}", re.ASCII)
_SERVICE: Final = re.compile(r"[a-z0-9-]{1,64}(\.[a-z0-9-]{1,64}){1,6}", re.ASCII)


@dataclass(frozen=True)
class Caller:
    """A principal.

    Attributes:
        arn: An IAM ARN (role, user or account root), a service's name such as
            `ec2.amazonaws.com`, or an identity provider's for a federated one.
        kind: "AWS", "Service" or "Federated": under which key a policy names it.
        account: 12 digits; empty for a service.
        session_arn: Of an assumed role or federated user, None otherwise.
    """

    arn: str
    kind: str = "AWS"
    account: str = ""
    session_arn: str | None = None

    @property
    def identities(self) -> tuple[str, ...]:
        """Its own ARNs, most general last; an account's root is what `account_names` has."""
        return (self.arn,) if self.session_arn is None else (self.session_arn, self.arn)

    @property
    def account_names(self) -> tuple[str, ...]:
        """How a policy names its account as a whole."""
        partition = self.arn.split(":")[1] if self.arn.startswith("arn:") else "aws"
        if not self.account:
            return ()
        return (self.account, f"arn:{partition}:iam::{self.account}:root")

    @classmethod
    def of(cls, name: str) -> "Caller":
        """Return the caller that `name` means.

        An assumed role's session is the role, too. Its ARN does not hold the role's path: give
        the role's own ARN where that has one.

        Args:
            name: ARN of a role, user, account root, assumed role or federated user; a service's
                name; or 12 digits, an account.

        Raises:
            PolicyError: None of these.
        """
        if _ACCOUNT.fullmatch(name):
            return cls(f"arn:aws:iam::{name}:root", account=name)
        match = _ARN.fullmatch(name)
        if match is None:
            if _SERVICE.fullmatch(name):
                return cls(name, "Service")
            raise PolicyError(
                f"{name[:200]!r} is no principal: give the ARN of a role or user, an account, or a "
                "service's name"
            )
        account, resource = match["account"], match["resource"]
        start = f"arn:{match['partition']}:iam::{account}"
        kind, _, rest = resource.partition("/")
        if (kind in ("assumed-role", "federated-user")) != (match["service"] == "sts"):
            raise PolicyError(f"{name[:200]!r} is no ARN of IAM: sessions are arn:aws:sts:...")
        if kind == "assumed-role":
            return cls(f"{start}:role/{rest.partition('/')[0]}", "AWS", account, name)
        if kind == "federated-user":
            return cls(f"{start}:user/{rest}", "AWS", account, name)
        return cls(name, "AWS", account)


def account_of(principal: str) -> str:
    """Return the account a policy's AWS principal belongs to; empty if it names none.

    Args:
        principal: 12 digits, an ARN, or anything else.
    """
    if _ACCOUNT.fullmatch(principal):
        return principal
    match = _ARN.fullmatch(principal)
    return match["account"] if match else ""
