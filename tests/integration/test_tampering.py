"""Whatever is done to an encrypted file: a typed error that names it, and nothing of it runs.

Every file goes the whole way: a notebook's `%load_encrypted`, the supervisor, KMS, a vault. That
nothing ran can be seen: each package leaves a file behind when it is imported.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jupyter_client.blocking.client import BlockingKernelClient

from enclave_kernel import key_release_errors
from enclave_protocol import package_errors, package_signature
from enclave_protocol.chunked_encryption import PREFIX_BYTES, SEALED_CHUNK_BYTES
from enclave_protocol.package_header import PREAMBLE_BYTES, decode_header
from tests.support.enclave_home import EnclaveHome, kernel, wait_until
from tests.support.notebook_cells import one_line, run_cell, vault_pids
from tests.support.package_owner import PackageOwner, open_folder, write_package

_ERRORS = {
    *(*package_errors.__all__, *key_release_errors.__all__),
    package_signature.PackageSignatureError.__name__,
}
_MANIFEST = """
[package]
name = "{name}"
version = "1.0"
module = "{name}"
[exports.functions]
answer = "answer()"
[docs]
answer = "Return what is known beforehand."
"""
# A vault lets nothing out but its own end: whoever runs this code is told its exit code.
_SOURCE = """
import os
os._exit({exit_code})
def answer():
    return 42
"""
_EXIT_CODES = {"scorer": 77, "other": 78}
# Few examples of each kind of change, but all over the file; the properties of the format alone
# are tested with thousands in tests/protocol.
_settings = settings(
    deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


@dataclass(frozen=True)
class Parts:
    """An encrypted file, cut where its regions meet."""

    preamble: bytes
    label: bytes
    tail: bytes
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> "Parts":
        header = decode_header(data)
        label_end = PREAMBLE_BYTES + len(header.label_bytes)
        end = len(header.raw)
        return cls(data[:PREAMBLE_BYTES], header.label_bytes, data[label_end:end], data[end:])

    @property
    def regions(self) -> tuple[bytes, ...]:
        return self.preamble, self.label, self.tail, self.body[:PREFIX_BYTES], self._chunks

    @property
    def _chunks(self) -> bytes:
        return self.body[PREFIX_BYTES:]

    @property
    def chunks(self) -> list[bytes]:
        step, rest = SEALED_CHUNK_BYTES, self._chunks
        return [rest[start : start + step] for start in range(0, len(rest), step)]


class Bench:
    """One kernel, and the files to be altered.

    Attributes:
        files: `original`; `twin`, the same folder encrypted again under the same KMS key; `other`,
            another package under that key.
    """

    def __init__(self, client: BlockingKernelClient, folder: Path, files: dict[str, bytes]) -> None:
        self.files = files
        self._client = client
        self._folder = folder

    @property
    def original(self) -> bytes:
        return self.files["original"]

    def refuse(self, data: bytes) -> str:
        """Have the notebook load these bytes, and return the error's class; nothing else happens.

        Bytes that are one of the files after all are left alone.
        """
        if data in self.files.values():
            return ""
        (self._folder / "altered.encrypted").write_bytes(data)
        before = self._names()
        line = one_line(run_cell(self._client, "%load_encrypted altered.encrypted"))
        name, _, rest = line.partition(": ")
        assert name in _ERRORS, rest
        assert rest.startswith("altered.encrypted: ")
        assert "exit code" not in rest
        assert self._names() == before
        return name

    def opens(self, name: str) -> None:
        """Positive control: the code of the file as it was made runs, and that can be seen."""
        line = one_line(run_cell(self._client, f"%load_encrypted {name}.encrypted"))
        assert f"exit code {_EXIT_CODES['other' if name == 'other' else 'scorer']}" in line

    def _names(self) -> str:
        """Return the user's names, and what is loaded."""
        expression = (
            "sorted(n for n in get_ipython().user_ns if n[0] != '_'), "
            "list(get_ipython().magics_manager.registry['EncryptedMagics'].packages)"
        )
        reply = self._client.execute(
            "", silent=True, user_expressions={"names": expression}, reply=True, timeout=30
        )
        names: str = reply["content"]["user_expressions"]["names"]["data"]["text/plain"]
        return names


@pytest.fixture(scope="module")
def bench(enclave: EnclaveHome) -> Iterator[Bench]:
    status = enclave.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    arn = owner.new_key(status["pcrs"]["0"])
    with open_folder() as folder, kernel(cwd=str(folder)) as (_, client):
        for package, outputs in (("scorer", ("original", "twin")), ("other", ("other",))):
            source = _SOURCE.format(exit_code=_EXIT_CODES[package])
            files: dict[str, str | bytes] = {
                "enclave.toml": _MANIFEST.format(name=package),
                f"{package}.py": source,
                "weights.bin": bytes(range(256)) * 200,
            }
            write_package(folder / package, files)
            for output in outputs:
                owner.encrypt(folder / package, arn, folder / f"{output}.encrypted")
        names = ("original", "twin", "other")
        made = {name: (folder / f"{name}.encrypted").read_bytes() for name in names}
        bench = Bench(client, folder, made)
        for name in names:
            bench.opens(name)
        yield bench
        # Nothing came late, and the kernel still does what it did before all of this.
        time.sleep(0.5)
        for name in names:
            bench.opens(name)
        assert wait_until(lambda: len(vault_pids(enclave)) <= 1)


@given(data=st.data(), flip=st.integers(1, 255))
@settings(_settings, max_examples=160)
def test_any_altered_byte_is_refused(bench: Bench, data: st.DataObject, flip: int) -> None:
    altered = bytearray(bench.original)
    regions = Parts.of(bench.original).regions
    # The whole file, or a region of it: the short ones get as many as the long one.
    region = data.draw(st.sampled_from([None, *range(len(regions))]), "region")
    start = 0 if region is None else sum(map(len, regions[:region]))
    size = len(altered) if region is None else len(regions[region])
    altered[start + data.draw(st.integers(0, size - 1), "offset")] ^= flip
    bench.refuse(bytes(altered))


@given(data=st.data())
@settings(_settings, max_examples=30)
def test_any_truncation_is_refused(bench: Bench, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(bench.original) - 1), "size")
    assert bench.refuse(bench.original[:size]) == "PackageTruncatedError"


def test_truncation_at_every_boundary_is_refused(bench: Bench) -> None:
    parts = Parts.of(bench.original)
    pieces = (*parts.regions[:-1], *parts.chunks)
    assert len(parts.chunks) == 4
    for count in range(len(pieces)):
        end = sum(map(len, pieces[:count]))
        for size in {max(0, end - 1), end, end + 1}:
            assert bench.refuse(bench.original[:size]) == "PackageTruncatedError"


@given(extra=st.binary(min_size=1, max_size=2 * SEALED_CHUNK_BYTES))
@settings(_settings, max_examples=15)
def test_appended_bytes_are_refused(bench: Bench, extra: bytes) -> None:
    assert bench.refuse(bench.original + extra) == "PackageTamperedError"


@pytest.mark.parametrize("source", ["twin", "other"])
def test_regions_of_two_files_do_not_mix(bench: Bench, source: str) -> None:
    ours, theirs = Parts.of(bench.original).regions, Parts.of(bench.files[source]).regions
    for mask in range(1, 2 ** len(ours) - 1):
        bench.refuse(b"".join(theirs[i] if mask >> i & 1 else ours[i] for i in range(len(ours))))


@given(data=st.data())
@settings(_settings, max_examples=30)
def test_spliced_files_are_refused(bench: Bench, data: st.DataObject) -> None:
    source = bench.files[data.draw(st.sampled_from(["twin", "other"]), "source")]
    cut = data.draw(st.integers(1, len(bench.original) - 1), "cut")
    resume = data.draw(st.sampled_from([cut, None]), "resume")
    if resume is None:
        resume = data.draw(st.integers(0, len(source) - 1), "at")
    bench.refuse(bench.original[:cut] + source[resume:])


@given(data=st.data())
@settings(_settings, max_examples=30)
def test_chunks_neither_move_nor_repeat_nor_mix(bench: Bench, data: st.DataObject) -> None:
    parts = Parts.of(bench.original)
    names = st.sampled_from(sorted(bench.files))
    drawn = data.draw(
        st.lists(st.tuples(names, st.integers(0, 3)), min_size=1, max_size=5), "chunks"
    )
    chunks = [Parts.of(bench.files[name]).chunks[number] for name, number in drawn]
    bench.refuse(b"".join((*parts.regions[:-1], *chunks)))
