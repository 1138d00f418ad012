"""The answer to a usage_request, without a kernel around it."""

import os
import socket
import time
from typing import Any

import pytest

from enclave_kernel.session.usage_reply import HOST_NAME, UsageReply

psutil: Any = pytest.importorskip("psutil")
"""ipykernel brings it: the second opinion on what /proc says."""


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_fields_are_those_that_the_panel_reads() -> None:
    content = UsageReply().content(None)
    assert content["hostname"] == HOST_NAME != socket.gethostname()
    assert content["pid"] == os.getpid()
    assert content["cpu_count"] == os.cpu_count()
    memory = content["host_virtual_memory"]
    assert {"active", "available", "free", "inactive", "percent", "total", "used"} <= set(memory)
    expected = psutil.virtual_memory()
    assert memory["total"] == pytest.approx(expected.total, abs=2**26)
    assert all(size % 2**26 == 0 for name, size in memory.items() if name != "percent")
    assert memory["percent"] == pytest.approx(expected.percent, abs=5)
    assert memory["available"] == pytest.approx(expected.available, rel=0.1)
    assert content["kernel_memory"] == pytest.approx(
        sum(
            process.memory_full_info().pss
            for process in (psutil.Process(), *psutil.Process().children(recursive=True))
        ),
        rel=0.1,
    )


def test_processor_time_since_the_last_answer() -> None:
    clock = _Clock()
    reply = UsageReply(clock)
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    clock.now = 2.0
    first = reply.content(None)["kernel_cpu"]
    assert 10 <= first <= 60
    # Another panel asks at once: it is told the same, not noise.
    clock.now = 2.001
    assert reply.content(None)["kernel_cpu"] == first
    clock.now = 100.0
    assert reply.content(None)["kernel_cpu"] < 5


def test_the_enclaves_processors() -> None:
    clock = _Clock()
    reply = UsageReply(clock)
    assert "host_cpu_percent" not in reply.content(None)
    time.sleep(0.1)
    clock.now = 2.0
    assert 0 <= reply.content(None)["host_cpu_percent"] <= 100
