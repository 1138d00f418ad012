"""docs/runbook.md: its commands are ones that the templates and our commands understand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_infra.image.python_packages import PYTHON
from tests.support.deployed_stack import load_template
from tests.support.project_wheel import ROOT

_TEXT = (ROOT / "docs" / "runbook.md").read_text()
_BLOCKS = re.findall(r"^```bash\n(.*?)^```$", _TEXT, re.DOTALL | re.MULTILINE)
_COMMANDS = [
    line for block in _BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()
]
_DEPLOYS = [line for line in _COMMANDS if line.startswith("aws cloudformation deploy")]
_TEMPLATES = (
    *("owner-key", "sharing-bucket", "encryptor-pipeline", "parent-instance"),
    "image-pipeline",
)
_DEPLOYED = list(zip(_DEPLOYS, _TEMPLATES, strict=True))


def _option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def _overrides(words: list[str]) -> set[str]:
    begin = words.index("--parameter-overrides") + 1
    return {word.partition("=")[0] for word in words[begin:]}


@pytest.mark.parametrize("block", _BLOCKS)
def test_every_block_is_a_script(block: str) -> None:
    result = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_template_is_deployed_once() -> None:
    files = [Path(_option(shlex.split(line), "--template-file")) for line in _DEPLOYS]
    assert [path.stem for path in files] == list(_TEMPLATES)
    assert {path.stem for path in (ROOT / files[0]).parent.glob("*.yaml")} == set(_TEMPLATES)


@pytest.mark.parametrize(("line", "name"), _DEPLOYED, ids=_TEMPLATES)
def test_parameters_are_those_of_the_template(line: str, name: str) -> None:
    parameters = load_template(name)["Parameters"]
    given = _overrides(shlex.split(line))
    assert given <= parameters.keys()
    assert {key for key, value in parameters.items() if "Default" not in value} <= given


@pytest.mark.parametrize(("line", "name"), _DEPLOYED, ids=_TEMPLATES)
def test_capabilities_are_what_the_template_needs(line: str, name: str) -> None:
    roles = [
        resource["Properties"]
        for resource in load_template(name)["Resources"].values()
        if resource["Type"] == "AWS::IAM::Role"
    ]
    needed = ""
    if roles:
        named = any("RoleName" in role for role in roles)
        needed = "CAPABILITY_NAMED_IAM" if named else "CAPABILITY_IAM"
    words = shlex.split(line)
    assert (_option(words, "--capabilities") if "--capabilities" in words else "") == needed


def test_parameters_and_outputs_named_in_the_text_exist() -> None:
    stacks = {_option(shlex.split(line), "--stack-name"): name for line, name in _DEPLOYED}
    asked = re.findall(r"\$\(output (\S+) (\w+)\)", _TEXT)
    assert len(asked) >= 5
    for stack, output in asked:
        assert output in load_template(stacks[stack])["Outputs"]
    everything = {key for name in _TEMPLATES for key in load_template(name)["Parameters"]}
    everything |= {key for name in _TEMPLATES for key in load_template(name)["Outputs"]}
    answers = {"Enabled", "PendingDeletion", "SUCCEEDED"}
    for name in re.findall(r"`([A-Z][A-Za-z0-9]+)(?:=\w+)?`", _TEXT):
        assert name in everything | answers, name


def test_options_of_our_commands_exist() -> None:
    uses = re.findall(r"\.venv/bin/(enclave-(?:owner|image)) ([a-z-]+)([^\n`|]*)", _TEXT)
    assert {(program, command) for program, command, _ in uses} == {
        *(("enclave-owner", command) for command in ("encrypt", "key-policy", "try")),
        *(("enclave-image", command) for command in ("build", "describe", "compare")),
        *(("enclave-image", command) for command in ("lock", "lock-requirements")),
    }
    modules = {"enclave-owner": "enclave_encryption", "enclave-image": "enclave_infra.image"}
    help_texts = {
        (program, command): subprocess.run(
            [sys.executable, "-m", modules[program], command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for program, command, _ in uses
    }
    for program, command, rest in uses:
        for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", rest):
            shown = help_texts[program, command]
            assert re.search(rf"(?<!\S){re.escape(option)}\b", shown), option


@pytest.mark.parametrize("page", ["runbook.md", "aws.md"])
def test_links(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_the_virtual_machine_is_shown() -> None:
    assert "enclave up --backend qemu --image" in _TEXT
    tools = [word for line in _COMMANDS for word in line.split() if word.startswith(".ci/")]
    assert tools and all((ROOT / tool).is_file() for tool in tools)


def test_every_step_can_be_taken() -> None:
    assert "not built yet" not in _TEXT.lower()


def test_the_image_pipelines_bundle_is_for_debians_python() -> None:
    """Its container is Debian 12, whose Python images have, too; CodeBuild's own have 3.12."""
    downloads = [shlex.split(line) for line in _COMMANDS if " download " in line]
    versions = {_option(words, "--dest"): _option(words, "--python-version") for words in downloads}
    assert versions == {"wheels-owner": "3.12", "wheels-parent": "3.12", "wheels-image": PYTHON}


def test_roles_of_pipelines_have_the_names_that_the_other_stacks_are_told() -> None:
    for name, parameter in (
        ("encryptor-pipeline", "PipelineRoleName"),
        ("image-pipeline", "BuilderRoleName"),
    ):
        role = load_template(name)["Parameters"][parameter]["Default"]
        assert f':role/{role}"' in _TEXT
    assert f"`ImageBuilderRoleName={role}`" in _TEXT


def test_the_services_are_those_of_the_repository() -> None:
    units = {path.name for path in (ROOT / "infra" / "systemd").glob("*.service")}
    named = set(re.findall(r"(?<![\w-])(enclave[a-z-]*\.service)\b", _TEXT))
    assert named == units


def test_commands_on_the_instance_exist() -> None:
    uses = re.findall(r"/opt/enclave/bin/enclave ([a-z]+)([^\n`|\']*)", _TEXT)
    assert {command for command, _ in uses} >= {"status", "attest", "up", "proxy"}
    for command, rest in uses:
        shown = subprocess.run(
            [sys.executable, "-m", "enclave_parent_gateway", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest):
            assert re.search(rf"(?<!\S){re.escape(option)}\b", shown), option
