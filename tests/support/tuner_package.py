"""A package that calls functions of the user's: from calls, methods, iterators, constructors."""

from tests.support.sealed_package import SealedPackage, seal_package
from tests.support.vault_packages import CANARY

__all__ = ["tuner_package"]

_MANIFEST = """
[package]
name = "tuner"
version = "1"
module = "tuner"
[exports.functions]
minimise = "minimise(objective, start, *, steps=3, report=None)"
run = "run(code, objective=None)"
awaited = "async awaited(objective)"
stream = "stream(objective)"
other = "other(x, **rest)"
[exports.classes.Search]
init = "Search(objective=None)"
methods = ["step(objective, x)"]
[exports.returns]
stream = "iter"
[policy]
errors = ["ValueError"]
callbacks = { objective = "(x: ndarray, step: int)", report = "(best: float | None)" }
output = "text"
"""
_SOURCE = f"""
import numpy as np
from enclave_kernel import vault

SECRET = "{CANARY}"


def minimise(objective, start, *, steps=3, report=None):
    best = None
    for step in range(steps):
        value = objective(start + step, step=step)
        best = value if best is None else min(best, value)
        if report is not None:
            report(best)
    return best


def run(code, objective=None):
    scope = {{"objective": objective, "np": np, "X": np.zeros(1)}}
    exec(code, scope)
    return scope.get("result")


async def awaited(objective):
    return objective(np.zeros(2), 0)


def stream(objective):
    def items():
        yield 1
        yield objective(np.zeros(1), 0)
    return items()


def other(x, **rest):
    return x


class Search:
    def __init__(self, objective=None):
        self.kept = objective
        self.first = None if objective is None else objective(np.ones(1), 0)

    def step(self, objective, x):
        return objective(x, 1)
"""


def tuner_package(policy: str = "") -> SealedPackage:
    return seal_package({"tuner.py": _SOURCE}, _MANIFEST + policy)
