"""Coverage-guided fuzzing with atheris: `make fuzz`.

    python -m tests.fuzz [--seconds 60] [TARGET ...]

Each target runs in a process of its own, the time is divided between them. What a run learned
stays in .cache/fuzz/TARGET/corpus; its log and what it found are beside it. Repeat a finding with
`python -m tests.fuzz --replay FILE TARGET`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.fuzz.one_target import CACHE
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--replay", type=Path, help="give one input to one target, and end")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    if options.replay:
        if len(options.targets) != 1:
            parser.error("--replay takes one TARGET")
        TARGETS[names[0]].run(options.replay.read_bytes())
        return 0
    seconds = max(1, options.seconds // len(names))
    failed = [name for name in names if not _run(name, seconds)]
    if failed:
        print(f"Found something in: {', '.join(failed)}; the inputs are in {CACHE}")
    return 1 if failed else 0


def _run(name: str, seconds: int) -> bool:
    """Fuzz one target, say how it went, and return whether nothing was found."""
    command = [sys.executable, "-m", "tests.fuzz.one_target", "--seconds", str(seconds), name]
    log = CACHE / name / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        ended = subprocess.run(command, check=False, stdout=file, stderr=file)
    lines = log.read_text(errors="replace").splitlines()
    done = [line for line in lines if line.startswith("Done ")]
    print(f"{name}: {done[-1] if done else 'ended early'}", flush=True)
    if ended.returncode != 0:
        print("\n".join(lines[-40:]))
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
