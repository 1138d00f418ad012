"""Give a target many mutants of its seeds, in a process whose memory is limited.

    python -m tests.fuzz.mutants TARGET NUMBER

Prints by how many KiB its memory grew. A finding ends it with a traceback and the input.
"""

import random
import resource
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

_MORE_BYTES = 1 << 30
_MAX_PROCESSOR_S = 600


def main() -> None:
    name, number = sys.argv[1], int(sys.argv[2])
    target = TARGETS[name]
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_PROCESSOR_S, _MAX_PROCESSOR_S))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = random.Random(name)
    for _ in range(number):
        mutant = target.mutate(source, source.choice(seeds))
        try:
            target.run(mutant)
        except BaseException:
            sys.stderr.write(f"found with {mutant.hex()}\n")
            raise
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


if __name__ == "__main__":
    main()
