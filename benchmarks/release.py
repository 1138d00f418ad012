"""The load of a small package, split: attestation, KMS, decryption, the rest.

    python -m benchmarks.release [--rounds 15] [--json]

A local enclave of this run's own. The key's release runs here with the supervisor's own code
against that enclave's NSM and KMS; the whole load runs in a notebook. Medians. Exits with 1 if the
goal is missed. KMS is the local cloud, on the same machine: its share says nothing about AWS.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization

from benchmarks.own_enclave import evaluate, kernel_in, own_enclave, publish
from enclave_infra.local_cloud.identities import HOST_ACCESS_KEY_ID, IDENTITIES
from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.messages import Credentials
from enclave_protocol.package_reader import read_header, read_package

__all__ = ["main"]

GOAL_S: Final = 0.015
"""Attestation and RSA together, the pool warm."""
SPARE_S: Final = 1.0
"""How long the pool and the spare vault get to be ready."""
MANIFEST: Final = (
    '[package]\nname = "small"\npublisher = "Benchmark"\n[exports.functions]\ntwice = "twice(x)"\n'
)
SOURCE: Final = "import numpy as np\n\ndef twice(x):\n    return np.multiply(x, 2)\n"


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def _attest(nsm: NsmClient, pool: RsaPool) -> bytes:
    """As `release_data_key` begins."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return nsm.attest(public_key=pool.get().public_key().public_bytes(*form))


def _open(whole: bytes, key: bytearray) -> None:
    for _ in read_package(io.BytesIO(whole), lambda _: key):
        continue


def _measure(file: Path, rounds: int) -> dict[str, list[float]]:
    host = IDENTITIES[HOST_ACCESS_KEY_ID]
    credentials = Credentials(host.access_key_id, host.secret_access_key)
    names = ("attestation and RSA", "key release", "decryption", "%load_encrypted")
    times: dict[str, list[float]] = {name: [] for name in names}
    with own_enclave() as status, tempfile.TemporaryDirectory(prefix="enclave-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = folder / "small"
        source.mkdir()
        (source / "enclave.toml").write_text(MANIFEST)
        (source / "small.py").write_text(SOURCE)
        publish(status, source, folder / file)
        whole = (folder / file).read_bytes()
        header = read_header(io.BytesIO(whole))
        endpoint = f"unix:{os.environ['ENCLAVE_RUNTIME_DIR']}/nsm.sock"
        with (
            NsmClient.open(endpoint) as nsm,
            RsaPool(4) as pool,
            kernel_in(folder) as client,
        ):
            for number in range(rounds + 1):
                time.sleep(SPARE_S)
                attested, _ = _timed(lambda: _attest(nsm, pool))
                released, key = _timed(
                    lambda: release_data_key(
                        header,
                        nsm=nsm,
                        keys=pool,
                        credentials=credentials,
                        endpoint_url=status["kms_endpoint_url"],
                        clock=TrustedClock(),
                    )
                )
                opened, _ = _timed(partial(_open, whole, key))
                loaded = evaluate(client, "seconds", _cell(file))
                if number:  # the first round only warms up
                    figures = (attested, released, opened, loaded)
                    for name_of, seconds in zip(names, figures, strict=True):
                        times[name_of].append(seconds)
    return times


def _cell(file: Path) -> str:
    return f"""
import time
begin = time.perf_counter()
get_ipython().run_line_magic("load_encrypted", "{file} as small")
seconds = time.perf_counter() - begin
get_ipython().run_line_magic("unload_encrypted", "small")
"""


def _split(times: dict[str, list[float]]) -> dict[str, float]:
    """Return medians in seconds; what is not measured alone is the difference."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    attested, released = middle["attestation and RSA"], middle["key release"]
    opened, loaded = middle["decryption"], middle["%load_encrypted"]
    return {
        "attestation and RSA": attested,
        "KMS and CMS (local cloud)": released - attested,
        "decryption": opened,
        "vault, import and the rest": loaded - released - opened,
        "%load_encrypted": loaded,
    }


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="loads (default 15)")
    parser.add_argument("--json", action="store_true", help="seconds as JSON")
    options = parser.parse_args()
    parts = _split(_measure(Path("small.encrypted"), options.rounds))
    met = parts["attestation and RSA"] <= GOAL_S
    if options.json:
        print(json.dumps(parts, indent=2))
        return 0 if met else 1
    for name, seconds in parts.items():
        goal = ""
        if name == "attestation and RSA":
            goal = f"at most {GOAL_S * 1e3:.0f} ms {'✓' if met else '✗'}"
        print(f"{name:30}{seconds * 1e3:9.1f} ms  {goal}".rstrip())
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
