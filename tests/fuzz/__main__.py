"""Coverage-guided fuzzing with atheris: `make fuzz`.

    python -m tests.fuzz [--seconds 60] [TARGET ...]

Each target runs in a process of its own, the time is divided between them. What a run learned
stays in .cache/fuzz/TARGET/corpus; its log and what it found are beside it. Repeat a finding with
`python -m tests.fuzz --replay FILE TARGET`.
"""

import argparse
import hashlib
import importlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_CACHE: Final = Path(__file__).parents[2] / ".cache" / "fuzz"
_INSTRUMENTED: Final = ["enclave_protocol", "enclave_kernel", "asn1crypto"]
_NAMES: Final = ("value", "call_frames", "package_header", "attestation", "cms", "frames")
_TIMEOUT_S: Final = 10
"""One input that takes longer is a hang."""
_MEMORY_MIB: Final = 1024
_MAX_INPUT_BYTES: Final = 32 * 1024


def _fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process; atheris ends it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus = _CACHE / name / "corpus"
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
        *(f"-max_len={_MAX_INPUT_BYTES}", f"-artifact_prefix={_CACHE / name}/", "-verbosity=1"),
        "-print_final_stats=1",
    ]
    arguments = [sys.argv[0], *options, str(corpus)]
    atheris.Setup(arguments, lambda data: target.run(data), custom_mutator=mutate)
    atheris.Fuzz()


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(_NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--replay", type=Path, help="give one input to one target, and end")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(_NAMES)
    unknown = sorted(set(names) - set(_NAMES))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    if options.replay:
        from tests.fuzz.targets import TARGETS

        TARGETS[names[0]].run(options.replay.read_bytes())
        return 0
    if options.here:
        _fuzz(names[0], options.seconds)
        return 0
    seconds = max(1, options.seconds // len(names))
    failed = []
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--seconds", str(seconds), name]
        log = _CACHE / name / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            ended = subprocess.run(command, check=False, stdout=file, stderr=file)
        lines = log.read_text(errors="replace").splitlines()
        done = [line for line in lines if line.startswith("Done ")]
        print(f"{name}: {done[-1] if done else 'ended early'}", flush=True)
        if ended.returncode != 0:
            print("\n".join(lines[-40:]))
            failed.append(name)
    if failed:
        print(f"Found something in: {', '.join(failed)}; the inputs are in {_CACHE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
