"""What the gateway is told of a kernel's cells, however often the kernel says something new."""

import asyncio

from enclave_kernel.supervisor.pending_cells import CellsTeller
from enclave_protocol.messages import KernelCells, PendingCell


def _cells(number: int) -> tuple[PendingCell, ...]:
    return (PendingCell((b"client",), f"request {number}", "session"),)


async def test_the_newest_word_and_at_most_so_often() -> None:
    told: list[KernelCells] = []
    teller = CellsTeller("one", told.append)
    loop = asyncio.get_running_loop()
    began = loop.time()
    number = 0
    while loop.time() - began < 0.5:
        number += 1
        teller.take(_cells(number))
        if number % 100 == 0:
            await asyncio.sleep(0)
    # A word at the beginning, and one after each pause of 50 ms.
    assert number > 1000 and 2 <= len(told) <= 12
    await asyncio.sleep(0.2)
    assert told[-1] == KernelCells("one", _cells(number))
    assert told[0] == KernelCells("one", _cells(1))
    before = len(told)
    teller.take(_cells(number))
    await asyncio.sleep(0.2)
    assert len(told) == before


async def test_again_for_another_gateway_and_not_after_the_end() -> None:
    told: list[KernelCells] = []
    teller = CellsTeller("one", told.append)
    teller.tell()
    assert told == []
    teller.take(_cells(1))
    teller.tell()
    assert told == [KernelCells("one", _cells(1))] * 2
    teller.take(_cells(2))
    teller.close()
    await asyncio.sleep(0.2)
    teller.tell()
    assert told == [KernelCells("one", _cells(1))] * 2
