from enclave_parent_gateway.api import ChannelTraffic
from enclave_parent_gateway.traffic import Traffic, traffic_of
from enclave_protocol.messages import CHANNELS


def _count(traffic: Traffic, amount: int) -> None:
    counters = traffic.add_slot()
    counters["iopub"].a_to_b += amount
    counters["iopub"].b_to_a += 10 * amount
    assert traffic_of(counters)[CHANNELS.index("iopub")] == ChannelTraffic(
        "iopub", amount, 10 * amount
    )
    if amount > 1:
        traffic.retire_slot(counters)
        traffic.retire_slot(counters)  # once is enough, twice is harmless


def test_slots_that_are_gone_stay_in_the_total() -> None:
    traffic = Traffic()
    for amount in (1, 2, 4):
        _count(traffic, amount)
    total = {each.channel: each for each in traffic.total()}
    assert list(total) == list(CHANNELS)
    assert total["iopub"] == ChannelTraffic("iopub", 7, 70)
    assert total["shell"] == ChannelTraffic("shell", 0, 0)
