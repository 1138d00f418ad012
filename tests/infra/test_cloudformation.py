"""All CloudFormation templates: cfn-lint, and what holds for every one of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deployed_stack import TEMPLATES

_TEMPLATES = sorted(TEMPLATES.glob("*.yaml"))
_NAMES = [path.name for path in _TEMPLATES]


def _cfn_lint(*arguments: str) -> subprocess.CompletedProcess[str]:
    # From the root directory: no configuration of this or any other project is read.
    return subprocess.run(
        [str(Path(sys.executable).with_name("cfn-lint")), *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=120,
    )


def test_there_are_templates() -> None:
    assert [
        *("encryptor-pipeline.yaml", "image-pipeline.yaml", "owner-key.yaml"),
        *("parent-instance.yaml", "sharing-bucket.yaml"),
    ] == _NAMES


def test_cfn_lint_finds_nothing() -> None:
    regions = ["us-east-1", "eu-west-2", "ap-southeast-2", "us-gov-west-1", "cn-north-1"]
    checks = ["--include-checks", "I", "--regions", *regions]
    result = _cfn_lint(*checks, "--", *map(str, _TEMPLATES))
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_cfn_lint_would_find_something(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = (TEMPLATES / "owner-key.yaml").read_text()
    wrong.write_text(text.replace("EnableKeyRotation: true", "EnableKeyRotation: often"))
    result = _cfn_lint(str(wrong))
    assert result.returncode != 0
    assert "'often' is not of type 'boolean'" in result.stdout


@pytest.mark.parametrize("path", _TEMPLATES, ids=_NAMES)
def test_no_region_account_partition_or_ignored_rule(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r"\b(?:us|eu|ap|ca|sa|me|af|il|mx|cn)-[a-z]+-[0-9]\b", text)
    assert not re.findall(r"\b[0-9]{12}\b", text)
    assert not re.findall(r"arn:aws[:-]", re.sub(r"arn:aws\[a-z-\]\*:", "", text))
    assert "cfn-lint" not in text
