"""Fuzzes one target in this process, which atheris ends: `python -m tests.fuzz.one_target`.

A module of its own: what is fuzzed must not be imported before atheris instruments it.
"""

import argparse
import hashlib
import importlib
import random
from pathlib import Path
from typing import Any, Final

__all__ = ["CACHE"]

CACHE: Final = Path(__file__).parents[2] / ".cache" / "fuzz"
_INSTRUMENTED: Final = [
    *("enclave_protocol", "enclave_kernel", "enclave_parent_gateway.egress", "asn1crypto"),
]
_TIMEOUT_S: Final = 10
"""One input that takes longer is a hang."""
_MEMORY_MIB: Final = 1024
_MAX_INPUT_BYTES: Final = 32 * 1024


def _fuzz(name: str, seconds: int) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus = CACHE / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:40]).write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        source = random.Random(seed)
        if source.random() < 0.5:
            mutant: bytes = atheris.Mutate(data, max_size)
            return mutant
        return target.mutate(source, data)[:max_size]

    options = [
        *(f"-max_total_time={seconds}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MIB}"),
        *(f"-max_len={_MAX_INPUT_BYTES}", f"-artifact_prefix={CACHE / name}/", "-verbosity=1"),
        "-print_final_stats=1",
    ]
    arguments = ["one_target", *options, str(corpus)]
    atheris.Setup(arguments, lambda data: target.run(data), custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    _fuzz(options.target, options.seconds)


if __name__ == "__main__":
    main()
