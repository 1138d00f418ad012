import pytest

from enclave_kernel.supervisor.token_bucket import TokenBucket


def test_a_burst_is_free_and_then_each_waits_its_turn() -> None:
    now = 100.0
    bucket = TokenBucket(3, 2.0, lambda: now)
    assert [bucket.take() for _ in range(5)] == [0.0, 0.0, 0.0, 2.0, 4.0]
    now += 4.0
    assert bucket.take() == pytest.approx(2.0)
    now += 1000.0
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]
