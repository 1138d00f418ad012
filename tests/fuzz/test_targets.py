"""The fuzz targets without a fuzzer: seeds, then mutants in a process with little memory."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
MUTANTS = {"value": 8000, "call_frames": 5000, "attestation": 1500, "cms": 1500}
MAX_GROWTH_KIB = 64 * 1024


@pytest.mark.parametrize("name", TARGETS)
def test_mutants_raise_nothing_else_and_take_no_memory(name: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz.mutants", name, str(MUTANTS.get(name, 3000))]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout) < MAX_GROWTH_KIB


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_differ_and_are_repeatable(name: str) -> None:
    target = TARGETS[name]
    seed = target.seeds()[0]
    first, second = ([target.mutate(random.Random(n), seed) for n in range(50)] for _ in range(2))
    assert first == second and len(set(first)) > 10
