from enclave_kernel.supervisor.counters import Counters
from enclave_protocol.enclave_usage import OTHER_KIND, RELEASE_BOUNDS_S
from enclave_protocol.errors import EnclaveError


def test_loads_refusals_and_releases() -> None:
    counters = Counters()
    counters.loaded()
    counters.refused(EnclaveError("secret"))
    counters.refused(EnclaveError("another secret"))
    for seconds in (0.01, 0.05, 0.06, 1e6):
        counters.released(seconds)
    counts = counters.snapshot()
    assert (counts.loads, counts.refusals) == (1, {"EnclaveError": 2})
    # A time that is a bound belongs below it, as Prometheus has it.
    assert counts.releases.counts == (2, 1, *(0,) * (len(RELEASE_BOUNDS_S) - 2), 1)
    assert counts.releases.sum_s == 1_000_000.12
    assert "secret" not in repr(counts)


def test_kinds_without_end_are_one() -> None:
    counters = Counters()
    for number in range(200):
        counters.refused(type(f"E{number}", (Exception,), {})())
    refusals = counters.snapshot().refusals
    assert len(refusals) == 61 and refusals[OTHER_KIND] == 140
    assert sum(refusals.values()) == 200
