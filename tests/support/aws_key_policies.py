"""Key policies of the AWS documentation, and who may do what under them.

Each example names its document and section. AWS's developer guide for KMS: "kms"; the IAM user
guide: "iam". Accounts, keys and names are the documentation's; PCR values that it shortened are
filled up to SHA-384. What is expected was worked out from the text around each example.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEY = "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OWN, ELSEWHERE = "arn:aws:iam::111122223333", "arn:aws:iam::444455556666"
IMAGE = "kms:RecipientAttestation:ImageSha384"
PCR0 = (
    "9fedcba8abcdef7abcdef6abcdef5abcdef4abcdef3abcdef2"
    "abcdef1abcdef1abcdef0abcdef1abcdef2abcdef3abcd"
)
PCR1 = (
    "1de4f2dcf774f6e3b679f62e5f120065b2e408dcea327bd1"
    "c9dddaea6664e7af7935581474844767453082c6f1586116"
)
OTHER = "ab" * 48
EC2, RDS = "ec2.us-west-2.amazonaws.com", "rds.us-west-2.amazonaws.com"

USE = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
USERS = [f"{OWN}:user/ExampleUser", f"{OWN}:role/ExampleRole", f"{ELSEWHERE}:root"]
ADMINISTRATION = [
    *("kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*", "kms:Update*"),
    *("kms:Revoke*", "kms:Disable*", "kms:Get*", "kms:Delete*", "kms:TagResource"),
    *("kms:UntagResource", "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion"),
]


def allow(principal: Any, action: Any, condition: Any = None, **more: Any) -> dict[str, Any]:
    named = principal if principal == "*" else {"AWS": principal}
    statement = {"Effect": "Allow", "Principal": named, "Action": action, "Resource": "*", **more}
    return {**statement, **({"Condition": condition} if condition else {})}


ROOT = allow(f"{OWN}:root", "kms:*", Sid="Enable IAM policies")
ADMINS = allow(
    [f"{OWN}:user/KMSAdminUser", f"{OWN}:role/KMSAdminRole"], ADMINISTRATION, Sid="Admins"
)
KEY_USERS = allow(USERS, USE, Sid="Allow use of the key")
ATTACH = allow(
    USERS,
    ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"],
    {"Bool": {"kms:GrantIsForAWSResource": "true"}},
    Sid="Allow attachment of persistent resources",
)


@dataclass(frozen=True)
class Ask:
    """A request, and whether the policy allows it."""

    allowed: bool
    who: str
    action: str = "kms:Decrypt"
    context: Mapping[str, str] = field(default_factory=dict)
    pcrs: Mapping[int, str] | None = None
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A policy, requests on it, and the actions by which somebody gets around attestation.

    Attributes:
        source: Document and section.
        around: Of the statements only; that the Deny is missing is the same for all.
        releasable: No Deny of its own stops a release to an enclave.
    """

    source: str
    statements: tuple[dict[str, Any], ...]
    asks: tuple[Ask, ...]
    around: tuple[str, ...]
    releasable: bool = True


ALL = ("kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant")
USER, ROLE = f"{OWN}:user/ExampleUser", f"{OWN}:role/ExampleRole"
APP = f"{OWN}:role/RoleForExampleApp"
PROCESSING = f"{OWN}:role/data-processing"
STRANGER = "arn:aws:iam::999999999999:role/stranger"

EXAMPLES = (
    Example(
        'kms, "Default key policy", "Allows access to the AWS account and enables IAM policies"',
        (ROOT,),
        (
            Ask(True, f"{OWN}:root"),
            Ask(True, f"{OWN}:role/any"),  # if its IAM policy says so
            Ask(True, f"{OWN}:role/any", "kms:PutKeyPolicy"),
            Ask(False, STRANGER),
        ),
        ALL,
    ),
    Example(
        'kms, "AWS KMS condition keys for AWS Nitro Enclaves", note on NotAction kms:Decrypt',
        ({**{k: v for k, v in ROOT.items() if k != "Action"}, "NotAction": "kms:Decrypt"},),
        (
            Ask(False, f"{OWN}:role/any"),
            Ask(True, f"{OWN}:role/any", "kms:ReEncryptFrom"),
            Ask(True, f"{OWN}:role/any", "kms:CreateGrant"),
        ),
        # AWS's advice stops Decrypt only.
        ("kms:ReEncryptFrom", "kms:CreateGrant"),
    ),
    Example(
        'kms, "Default key policy", "Allows key administrators to administer the KMS key"',
        (ADMINS,),
        (
            Ask(True, f"{OWN}:role/KMSAdminRole", "kms:PutKeyPolicy"),
            Ask(True, f"{OWN}:user/KMSAdminUser", "kms:ScheduleKeyDeletion"),
            Ask(True, f"{OWN}:user/KMSAdminUser", "kms:CreateGrant"),
            Ask(False, f"{OWN}:role/KMSAdminRole", "kms:Decrypt"),
            Ask(False, USER, "kms:DescribeKey"),
        ),
        ("kms:CreateGrant",),  # kms:Create*
    ),
    Example(
        'kms, "Creating a key policy", "Example key policy"',
        (ROOT, ADMINS, KEY_USERS, ATTACH),
        (
            Ask(True, USER),
            Ask(True, ROLE, "kms:ReEncryptFrom"),
            Ask(True, f"{ELSEWHERE}:role/any", "kms:GenerateDataKeyWithoutPlaintext"),
            Ask(
                True,
                f"{ELSEWHERE}:role/any",
                "kms:CreateGrant",
                more={"kms:GrantIsForAWSResource": "true"},
            ),
            Ask(False, f"{ELSEWHERE}:role/any", "kms:CreateGrant"),
            Ask(False, f"{ELSEWHERE}:role/any", "kms:PutKeyPolicy"),
            Ask(False, STRANGER, "kms:DescribeKey"),
        ),
        (*ALL, "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant"),
    ),
    Example(
        'kms, "Allowing users in other accounts to use a KMS key", step 1, roles and users',
        (allow([f"{ELSEWHERE}:role/ExampleRole", f"{ELSEWHERE}:user/ExampleUser"], USE),),
        (
            Ask(True, f"{ELSEWHERE}:role/ExampleRole"),
            Ask(True, "arn:aws:sts::444455556666:assumed-role/ExampleRole/session"),
            Ask(False, f"{ELSEWHERE}:role/AnotherRole"),
            Ask(False, f"{ELSEWHERE}:root"),
            Ask(False, ROLE),
        ),
        ("kms:Decrypt", "kms:ReEncryptFrom"),
    ),
    Example(
        'kms, "Allowing users in other accounts to use a KMS key", step 1, the account',
        (allow([f"{ELSEWHERE}:root"], USE),),
        (
            Ask(True, f"{ELSEWHERE}:role/AnotherRole"),
            Ask(True, f"{ELSEWHERE}:user/ExampleUser", "kms:Encrypt"),
            Ask(False, ROLE),
        ),
        ("kms:Decrypt", "kms:ReEncryptFrom"),
    ),
    Example(
        'kms, "AWS KMS condition keys for AWS Nitro Enclaves", ImageSha384',
        (
            allow(
                PROCESSING,
                ["kms:Decrypt", "kms:GenerateDataKey", "kms:GenerateRandom"],
                {"StringEqualsIgnoreCase": {IMAGE: PCR0}},
                Sid="Enable enclave data processing",
            ),
        ),
        (
            Ask(True, PROCESSING, pcrs={0: PCR0}),
            Ask(True, "arn:aws:sts::111122223333:assumed-role/data-processing/i-1", pcrs={0: PCR0}),
            Ask(True, PROCESSING, "kms:GenerateDataKey", pcrs={0: PCR0}),
            Ask(False, PROCESSING, pcrs={0: OTHER}),
            Ask(False, PROCESSING, pcrs={0: "00" * 48}),
            Ask(False, PROCESSING),
            Ask(False, PROCESSING, "kms:Encrypt", pcrs={0: PCR0}),
            Ask(False, ROLE, pcrs={0: PCR0}),
        ),
        (),
    ),
    Example(
        'kms, "AWS KMS condition keys for AWS Nitro Enclaves", PCR1',
        (
            allow(
                PROCESSING,
                "kms:Decrypt",
                {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR1": PCR1.upper()}},
            ),
        ),
        (
            Ask(True, PROCESSING, pcrs={0: PCR0, 1: PCR1}),
            Ask(True, PROCESSING, pcrs={0: OTHER, 1: PCR1}),  # another image, the same kernel
            Ask(False, PROCESSING, pcrs={0: PCR0, 1: OTHER}),
            Ask(False, PROCESSING, pcrs={0: PCR0}),
        ),
        ("kms:Decrypt",),  # PCR1 alone does not identify an image
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionContext:context-key, multiple pairs',
        (
            allow(
                APP,
                "kms:Decrypt",
                {
                    "StringEquals": {
                        "kms:EncryptionContext:Department": "IT",
                        "kms:EncryptionContext:Project": "Alpha",
                    }
                },
            ),
        ),
        (
            Ask(True, APP, context={"Department": "IT", "Project": "Alpha"}),
            Ask(True, APP, context={"Department": "IT", "Project": "Alpha", "More": "x"}),
            Ask(False, APP, context={"Department": "IT"}),
            Ask(False, APP, context={"Department": "it", "Project": "Alpha"}),
            Ask(False, APP),
        ),
        ("kms:Decrypt",),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionContext:context-key, no other keys',
        (
            allow(
                "arn:aws:iam::712816755609:user/alice",
                "kms:GenerateDataKey",
                {
                    "StringEquals": {"kms:EncryptionContext:AppName": "ExampleApp"},
                    "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["AppName"]},
                },
            ),
        ),
        (
            Ask(
                True,
                "arn:aws:iam::712816755609:user/alice",
                "kms:GenerateDataKey",
                {"AppName": "ExampleApp"},
            ),
            Ask(
                False,
                "arn:aws:iam::712816755609:user/alice",
                "kms:GenerateDataKey",
                {"AppName": "ExampleApp", "More": "x"},
            ),
            Ask(False, "arn:aws:iam::712816755609:user/alice", "kms:GenerateDataKey"),
        ),
        (),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionContext:context-key, case sensitivity',
        (
            allow(
                APP,
                "kms:Decrypt",
                {"StringEquals": {"kms:EncryptionContext:Appname": "ExampleApp"}},
            ),
        ),
        (
            # The condition key's name has no case; its value has.
            Ask(True, APP, context={"AppName": "ExampleApp"}),
            Ask(False, APP, context={"AppName": "exampleapp"}),
        ),
        ("kms:Decrypt",),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionContext:context-key, variables',
        (
            allow(
                f"{OWN}:role/TestTeam",
                ["kms:Decrypt", "kms:Encrypt"],
                {"StringEquals": {"kms:EncryptionContext:user": "${aws:username}"}},
            ),
        ),
        # What a variable stands for is not known here: not allowed, whoever it is.
        (Ask(False, f"{OWN}:role/TestTeam", context={"user": "bob"}),),
        ("kms:Decrypt",),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionContextKeys, any context at all',
        (
            allow(
                APP,
                ["kms:Encrypt", "kms:GenerateDataKey*"],
                {"Null": {"kms:EncryptionContextKeys": False}},
            ),
        ),
        (
            Ask(True, APP, "kms:Encrypt", {"a": "b"}),
            Ask(True, APP, "kms:GenerateDataKeyPair", {"a": "b"}),
            Ask(False, APP, "kms:Encrypt"),
        ),
        (),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionContext:context-key, a Deny',
        (
            allow(APP, "kms:*"),
            allow(
                APP,
                "kms:GenerateDataKey",
                {"StringEquals": {"kms:EncryptionContext:Stage": ["Restricted", "Production"]}},
                Effect="Deny",
            ),
        ),
        (
            Ask(True, APP, "kms:GenerateDataKey"),
            Ask(True, APP, "kms:GenerateDataKey", {"Stage": "Test"}),
            Ask(False, APP, "kms:GenerateDataKey", {"Stage": "Production"}),
            Ask(True, APP, "kms:Decrypt", {"Stage": "Production"}),
        ),
        ALL,
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:CallerAccount',
        (
            allow(
                "*",
                [*USE, "kms:CreateGrant"],
                {"StringEquals": {"kms:CallerAccount": "111122223333", "kms:ViaService": EC2}},
            ),
        ),
        (
            Ask(True, ROLE, more={"kms:ViaService": EC2}),
            Ask(False, ROLE),
            Ask(False, ROLE, more={"kms:ViaService": RDS}),
            Ask(False, f"{ELSEWHERE}:role/any", more={"kms:ViaService": EC2}),
        ),
        ALL,
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:ViaService',
        (
            allow(
                USER,
                [*USE, "kms:CreateGrant", "kms:ListGrants"],
                {"StringEquals": {"kms:ViaService": [EC2, RDS]}},
            ),
        ),
        (
            Ask(True, USER, more={"kms:ViaService": RDS}),
            Ask(False, USER, more={"kms:ViaService": "lambda.us-west-2.amazonaws.com"}),
            Ask(False, USER),
        ),
        ALL,
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:GrantOperations',
        (
            allow(
                USER,
                "kms:CreateGrant",
                {"ForAllValues:StringEquals": {"kms:GrantOperations": ["Encrypt", "ReEncryptTo"]}},
            ),
        ),
        (
            Ask(True, USER, "kms:CreateGrant", more={"kms:GrantOperations": "Encrypt"}),
            Ask(False, USER, "kms:CreateGrant", more={"kms:GrantOperations": "Decrypt"}),
        ),
        # Harmless as it stands; the tool does not follow conditions on grants, and says so.
        ("kms:CreateGrant",),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:ReEncryptOnSameKey',
        (allow(USER, "kms:ReEncrypt*", {"Bool": {"kms:ReEncryptOnSameKey": True}}),),
        (
            Ask(True, USER, "kms:ReEncryptFrom", more={"kms:ReEncryptOnSameKey": "true"}),
            Ask(False, USER, "kms:ReEncryptFrom", more={"kms:ReEncryptOnSameKey": "false"}),
        ),
        ("kms:ReEncryptFrom",),
    ),
    Example(
        'kms, "AWS KMS condition keys", kms:EncryptionAlgorithm, a Deny with a negated operator',
        (
            allow(ROLE, USE),
            allow(
                ROLE,
                ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*"],
                {"StringNotEquals": {"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}},
                Effect="Deny",
            ),
        ),
        (
            Ask(True, ROLE, more={"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}),
            Ask(False, ROLE, more={"kms:EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
            Ask(False, ROLE),
        ),
        ("kms:Decrypt", "kms:ReEncryptFrom"),
    ),
    Example(
        'kms, "Troubleshooting key access", example 2, a key in another account',
        (
            allow(f"{OWN}:root", "kms:*"),
            allow(
                f"{ELSEWHERE}:root",
                ["kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo"],
            ),
        ),
        (
            Ask(True, "arn:aws:sts::444455556666:assumed-role/Engineering/bob"),
            Ask(False, "arn:aws:sts::444455556666:assumed-role/Engineering/bob", "kms:CreateGrant"),
        ),
        (*ALL, "kms:Decrypt", "kms:ReEncryptFrom"),
    ),
    Example(
        'iam, "AWS JSON policy elements: NotPrincipal", everybody but one session denied',
        (
            allow(f"{OWN}:root", "kms:Encrypt"),
            {
                "Effect": "Deny",
                "NotPrincipal": {
                    "AWS": [
                        "arn:aws:sts::111122223333:assumed-role/cross-account-read-only-role/x",
                        f"{OWN}:role/cross-account-read-only-role",
                        f"{OWN}:root",
                    ]
                },
                "Action": "kms:*",
                "Resource": "*",
            },
        ),
        (
            Ask(
                True,
                "arn:aws:sts::111122223333:assumed-role/cross-account-read-only-role/x",
                "kms:Encrypt",
            ),
            Ask(False, ROLE, "kms:Encrypt"),
        ),
        (),
        releasable=False,
    ),
    Example(
        'iam, "AWS JSON policy elements: Principal", aws:PrincipalArn with a wildcard',
        (
            allow(
                "*",
                "kms:Decrypt",
                {"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::111122223333:role/app-*"}},
            ),
        ),
        (
            Ask(True, f"{OWN}:role/app-1"),
            Ask(False, f"{OWN}:role/other"),
            Ask(False, f"{ELSEWHERE}:role/app-1"),
        ),
        ("kms:Decrypt",),
    ),
)
