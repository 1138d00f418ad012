"""A small package as owners have them: submodule, data file, class by reference, numpy."""

from pathlib import Path

from tests.support.package_owner import PackageOwner, write_package

__all__ = ["publish_grader", "publish_slow"]

_MANIFEST = """
[package]
name = "grader"
version = "1.4"
description = "Grades rows of numbers."
module = "grader"
[exports.functions]
mean = "mean(values, *, weights=None)"
best = "best()"
nap = "nap(seconds)"
vault_number = "vault_number()"
[exports.classes]
Grader = { init = "Grader(bias=0.0)", methods = ["grade(rows, *, scale=1.0)", "shifted(by)"], \
attributes = ["bias"] }
[exports.returns]
best = "Grader"
"Grader.shifted" = "Grader"
[docs]
mean = "Return the weighted mean of a row."
"Grader.grade" = "Return one grade per row."
[policy]
errors = ["ValueError"]
"""
_INIT = '''
"""Not for the user's eyes."""
import os
import time

import numpy as np

from grader.models.linear import WEIGHTS, project


class Grader:
    def __init__(self, bias=0.0):
        self.bias = bias

    def grade(self, rows, *, scale=1.0):
        return project(rows) * scale + self.bias

    def shifted(self, by):
        return Grader(self.bias + by)


def mean(values, *, weights=None):
    return float(np.average(values, weights=weights))


def best():
    return Grader(bias=float(WEIGHTS.sum()))


def nap(seconds):
    time.sleep(seconds)


def vault_number():
    return os.getpid() if os.getpid() > 2 else os.getuid()
'''
_LINEAR = """
from pathlib import Path

import numpy as np

WEIGHTS = np.loadtxt(Path(__file__).parent / "weights.txt")


def project(rows):
    rows = np.asarray(rows, dtype=float)
    if rows.ndim != 2 or rows.shape[1] != len(WEIGHTS):
        raise ValueError(f"rows of {len(WEIGHTS)} numbers are needed")
    return rows @ WEIGHTS
"""
_SLOW_MANIFEST = """
[package]
name = "slow"
version = "1"
module = "slow"
[exports.functions]
vault_number = "vault_number()"
"""
_SLOW = """
import os, time
time.sleep(60)
def vault_number():
    return os.getpid() if os.getpid() > 2 else os.getuid()
"""


def publish_grader(owner: PackageOwner, key_arn: str, output: Path) -> Path:
    """Write the package under `key_arn`: weights 1, 2, 3, so `best` has the bias 6."""
    files = {
        "enclave.toml": _MANIFEST,
        "grader/__init__.py": _INIT,
        "grader/models/__init__.py": "",
        "grader/models/linear.py": _LINEAR,
        "grader/models/weights.txt": "1\n2\n3\n",
    }
    return owner.encrypt(write_package(output.with_suffix(""), files), key_arn, output)


def publish_slow(owner: PackageOwner, key_arn: str, output: Path) -> Path:
    """Write a package whose import takes a minute."""
    files = {"enclave.toml": _SLOW_MANIFEST, "slow.py": _SLOW}
    return owner.encrypt(write_package(output.with_suffix(""), files), key_arn, output)
