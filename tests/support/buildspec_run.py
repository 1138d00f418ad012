"""A CodeBuild buildspec, run here: its commands, one after the other, in one shell.

Not done is what only CodeBuild's own images have: `runtime-versions`. Python is the tests' own.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

__all__ = ["BuildspecRun", "Step", "run_phase"]

_MARK = re.compile(r"^@@step (\d+) (\d+)$", re.MULTILINE)
_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Step:
    """One command that was run, its exit code, and what it wrote to stdout and stderr."""

    command: str
    exit_code: int
    output: str


@dataclass(frozen=True)
class BuildspecRun:
    """A phase: its steps up to the first that failed, and the environment they left."""

    steps: tuple[Step, ...]
    environment: dict[str, str]
    complete: bool

    @property
    def output(self) -> str:
        """What all steps wrote."""
        return "".join(step.output for step in self.steps)


def run_phase(
    buildspec: str,
    phase: str,
    environment: Mapping[str, str],
    directory: Path,
    timeout_s: float = _TIMEOUT_S,
) -> BuildspecRun:
    """Run the commands of one phase, from `directory`, until one fails.

    Args:
        buildspec: YAML, version 0.2: all commands share a shell.
        phase: Such as "install".
        environment: All of it, PATH only if it is another one; what an earlier phase left.
        directory: Where CodeBuild would begin: the source.
        timeout_s: For the whole phase.
    """
    document = yaml.safe_load(buildspec)
    assert document["version"] == 0.2
    assert document["env"] == {"shell": "bash"}
    commands: list[str] = document["phases"][phase]["commands"]
    left = Path(environment["HOME"]) / f"environment-{phase}"
    script = "".join(
        f"{command}\n"
        f"__code=$?; printf '\\n@@step {number} %d\\n' $__code; [ $__code = 0 ] || exit 1\n"
        for number, command in enumerate(commands)
    )
    done = subprocess.run(
        ["bash", "-c", f"{script}env -0 >'{left}'\n"],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **environment},
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    parts = _MARK.split(done.stdout)
    steps = tuple(
        Step(commands[int(number)], int(code), output)
        for output, number, code in zip(parts[::3], parts[1::3], parts[2::3], strict=False)
    )
    complete = len(steps) == len(commands) and all(step.exit_code == 0 for step in steps)
    pairs = left.read_text().rstrip("\0").split("\0") if complete else []
    return BuildspecRun(steps, dict(pair.split("=", 1) for pair in pairs), complete)
