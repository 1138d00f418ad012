"""CloudFormation templates deployed against moto, and what they resolve to.

moto makes the resources it knows. Of the others, and of properties it does not apply, there is
what the template resolves to: moto's parser resolves references, conditions and functions.
"""

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from moto import mock_aws
from moto.cloudformation.models import cloudformation_backends
from moto.cloudformation.parsing import ResourceMap, clean_json
from moto.cloudformation.utils import yaml_tag_constructor

__all__ = [
    "TEMPLATES",
    "DeployedStack",
    "MotoAccount",
    "api_names",
    "by_resource",
    "load_template",
    "moto_account",
]

TEMPLATES = Path(__file__).resolve().parents[2] / "infra" / "cloudformation"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML with CloudFormation's short forms, such as `!Ref`."""


_Loader.add_multi_constructor("", yaml_tag_constructor)


def load_template(name: str) -> dict[str, Any]:
    """Return infra/cloudformation/`name`.yaml as it is, functions in their long form."""
    text = (TEMPLATES / f"{name}.yaml").read_text()
    template: dict[str, Any] = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    return template


@dataclass(frozen=True)
class DeployedStack:
    """A stack.

    Attributes:
        resources: Of those that exist, by logical id, their properties as resolved.
        outputs: By key; without those of resources that moto does not make.
        not_made: Types that moto's CloudFormation does not know.
    """

    resources: dict[str, dict[str, Any]]
    outputs: dict[str, str]
    not_made: frozenset[str]


@dataclass(frozen=True)
class MotoAccount:
    """An account and region in moto, while the `with` block of `moto_account` runs."""

    account: str
    region: str
    session: boto3.session.Session

    def client(self, service: str) -> Any:
        return self.session.client(service)  # type: ignore[call-overload]

    def deploy(self, template: str, *, stack_name: str = "", **parameters: str) -> DeployedStack:
        """Deploy infra/cloudformation/`template`.yaml, as a stack of that name if not given."""
        stack_name = stack_name or template
        cloudformation = self.client("cloudformation")
        with _unknown_types() as unknown:
            cloudformation.create_stack(
                StackName=stack_name,
                TemplateBody=(TEMPLATES / f"{template}.yaml").read_text(),
                Parameters=[
                    {"ParameterKey": key, "ParameterValue": value}
                    for key, value in parameters.items()
                ],
                Capabilities=["CAPABILITY_NAMED_IAM"],
            )
            (stack,) = cloudformation.describe_stacks(StackName=stack_name)["Stacks"]
            assert stack["StackStatus"] == "CREATE_COMPLETE"
            made = cloudformation_backends[self.account][self.region].get_stack(stack_name)
            resources = _resolved(made.resource_map)
        outputs = {found["OutputKey"]: found["OutputValue"] for found in stack["Outputs"]}
        return DeployedStack(resources, outputs, frozenset(unknown))

    def granted(self, role_arn: str) -> list[dict[str, Any]]:
        """Return all statements of all policies that moto's IAM has of a role."""
        iam = self.client("iam")
        role = role_arn.rpartition("/")[2]
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
        statements: list[dict[str, Any]] = []
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            if isinstance(document, str):  # moto gives some as Python writes them
                document = ast.literal_eval(document)
            statements += document["Statement"]
        return statements


def by_resource(statements: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the actions that a role's statements allow, by resource; nothing else is in them."""
    granted: dict[str, set[str]] = {}
    for statement in statements:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        granted.setdefault(statement["Resource"], set()).update(
            [actions] if isinstance(actions, str) else actions
        )
    return granted


def api_names(value: Any) -> Any:
    """Return a CodeBuild project's properties under the names of CodeBuild's API."""
    if isinstance(value, dict):
        return {
            (key if key == "S3" else key[0].lower() + key[1:]): api_names(item)
            for key, item in value.items()
        }
    return [api_names(item) for item in value] if isinstance(value, list) else value


@contextmanager
def moto_account(account: str, region: str = "eu-central-1") -> Iterator[MotoAccount]:
    """Yield an account in moto; every boto3 client made meanwhile talks to moto."""
    with mock_aws():
        keys = boto3.client("sts", region_name=region).assume_role(
            RoleArn=f"arn:aws:iam::{account}:role/deployer", RoleSessionName="test"
        )["Credentials"]
        yield MotoAccount(
            account,
            region,
            boto3.session.Session(
                aws_access_key_id=keys["AccessKeyId"],
                aws_secret_access_key=keys["SecretAccessKey"],
                aws_session_token=keys["SessionToken"],
                region_name=region,
            ),
        )


@contextmanager
def _unknown_types() -> Iterator[set[str]]:
    """Collect the types of resources that moto skips, and keep its log quiet about them."""
    unknown: set[str] = set()
    log = logging.getLogger("moto")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield unknown
    finally:
        log.setLevel(level)
    texts = [str(warning.message) for warning in caught]
    unknown.update(text.split()[3] for text in texts if text.startswith("Tried to parse "))


def _resolved(made: ResourceMap) -> dict[str, dict[str, Any]]:
    return {
        name: _without_nulls(clean_json(resource["Properties"], made))
        for name, resource in made._resource_json_map.items()
        if "Condition" not in resource or made.lazy_condition_map[resource["Condition"]]
    }


def _without_nulls(value: Any) -> Any:
    """Drop AWS::NoValue from lists, as CloudFormation does; moto leaves a null there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value if item is not None]
    return value
