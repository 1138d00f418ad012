"""A CodeBuild pipeline's template, deployed against moto with each kind of source.

And what every such pipeline is, whatever it builds: its role, its log, its project.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.deployed_stack import (
    DeployedStack,
    MotoAccount,
    api_names,
    by_resource,
    moto_account,
)

__all__ = [
    "COMMON",
    "CONNECTION",
    "KEY",
    "OWNER",
    "Pipeline",
    "deployed_pipeline",
]

OWNER, HOST = "111111111111", "222222222222"
KEY = f"arn:aws:kms:eu-central-1:{OWNER}:key/k"
CONNECTION = f"arn:aws:codeconnections:eu-central-1:{OWNER}:connection/0a1b"
COMMON = {
    "SharingBucket": "sharing",
    "SharingBucketAccount": HOST,
    "ToolsLocation": "owner-tools/tools.zip",
    "ToolsSha256": "0a" * 32,
}


@dataclass(frozen=True)
class Pipeline:
    """One template's stacks.

    Attributes:
        name: What its stacks, and so its log groups, begin with.
        role_output: The output that names the role of the project.
        stacks: By the source's type: CODECOMMIT, S3, GITHUB.
    """

    account: MotoAccount
    name: str
    role_output: str
    stacks: Mapping[str, DeployedStack]

    def check_granted(self, source: str, expected: dict[str, set[str]]) -> None:
        """Check that the role may do this, write its own log, and nothing else."""
        group = f"arn:aws:logs:eu-central-1:{OWNER}:log-group:/aws/codebuild/{self.name}-"
        granted = by_resource(self.account.granted(self.stacks[source].outputs[self.role_output]))
        (log,) = [found for found in granted if found.startswith(group)]
        assert granted.pop(log) == {"logs:CreateLogStream", "logs:PutLogEvents"}
        assert granted == expected

    def check_trust(self, source: str, role_name: str) -> None:
        """Check that the project of this source, and nobody else, assumes the role."""
        role = self.account.client("iam").get_role(RoleName=role_name)["Role"]
        (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": "codebuild.amazonaws.com"}
        project = self.stacks[source].resources["Project"]["Name"]
        assert statement["Condition"]["StringEquals"] == {
            "aws:SourceAccount": OWNER,
            "aws:SourceArn": f"arn:aws:codebuild:eu-central-1:{OWNER}:project/{project}",
        }

    def check_log_group(self) -> None:
        """Check that what the project logs is kept for 90 days."""
        groups = self.account.client("logs").describe_log_groups()["logGroups"]
        kept = {group["logGroupName"]: group.get("retentionInDays") for group in groups}
        assert kept[f"/aws/codebuild/{self.stacks['S3'].resources['Project']['Name']}"] == 90

    def check_projects(self) -> None:
        """Check what the templates resolve to: moto's CloudFormation makes no CodeBuild project."""
        for stack in self.stacks.values():
            assert stack.not_made == {"AWS::CodeBuild::Project"}
            project = stack.resources["Project"]
            assert project["Artifacts"] == {"Type": "NO_ARTIFACTS"}
            assert "PrivilegedMode" not in project["Environment"]
            assert project["SecondarySources"] == [
                {"Type": "S3", "Location": "owner-tools/tools.zip", "SourceIdentifier": "tools"}
            ]
        github, s3 = (self.stacks[name].resources["Project"] for name in ("GITHUB", "S3"))
        assert github["Source"]["Auth"] == {"Type": "CODECONNECTIONS", "Resource": CONNECTION}
        assert github["SourceVersion"] == "main"
        assert "Auth" not in s3["Source"]
        assert "SourceVersion" not in s3

    def check_codebuild_takes_them(self) -> None:
        """Give the same values to the API of moto's CodeBuild; boto3 checks their shape."""
        codebuild = self.account.client("codebuild")
        for stack in self.stacks.values():
            project = api_names(stack.resources["Project"])
            project["source"]["buildspec"] = project["source"].pop("buildSpec")
            made = codebuild.create_project(**project)["project"]
            assert made["serviceRole"] == stack.outputs[self.role_output]


@contextmanager
def deployed_pipeline(
    name: str, role_output: str, sources: Mapping[str, Mapping[str, str]], **common: str
) -> Iterator[Pipeline]:
    """Deploy infra/cloudformation/`name`-pipeline.yaml once for each source.

    Args:
        name: Of the pipeline; its stacks are `name`-SOURCE.
        role_output: As in `Pipeline`.
        sources: Parameters, by the source's type.
        common: Parameters of all, beside `COMMON`.
    """
    with moto_account(OWNER) as account:
        stacks = {
            source: account.deploy(
                f"{name}-pipeline",
                stack_name=f"{name}-{source.lower()}",
                SourceType=source,
                **COMMON,
                **common,
                **parameters,
            )
            for source, parameters in sources.items()
        }
        yield Pipeline(account, name, role_output, stacks)
