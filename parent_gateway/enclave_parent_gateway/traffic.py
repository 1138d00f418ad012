"""Streams to the enclave and bytes on kernels' channels, counted since the gateway's start."""

from collections import Counter
from collections.abc import Mapping

from enclave_parent_gateway.api import ChannelTraffic
from enclave_protocol.messages import CHANNELS
from enclave_protocol.relay import RelayCounters

__all__ = ["ChannelCounters", "Traffic", "new_counters", "traffic_of"]

ChannelCounters = Mapping[str, RelayCounters]
"""Of one slot: by channel."""


def new_counters() -> ChannelCounters:
    """Return counters at zero for every channel."""
    return {channel: RelayCounters() for channel in CHANNELS}


def traffic_of(*slots: ChannelCounters) -> tuple[ChannelTraffic, ...]:
    """Return the sums over these slots, channel by channel."""
    return tuple(
        ChannelTraffic(
            channel,
            sum(counters[channel].a_to_b for counters in slots),
            sum(counters[channel].b_to_a for counters in slots),
        )
        for channel in CHANNELS
    )


class Traffic:
    """The gateway's counts. Those of slots that are gone stay in them."""

    def __init__(self) -> None:
        self.streams: Counter[str] = Counter()
        """Opened, by what they carry: a channel's name, `supervisor` (control streams), `egress`,
        `workspace`."""
        self._gone = new_counters()
        self._slots: dict[int, ChannelCounters] = {}

    def add_slot(self) -> ChannelCounters:
        """Return the counters of a new slot."""
        counters = new_counters()
        self._slots[id(counters)] = counters
        return counters

    def retire_slot(self, counters: ChannelCounters) -> None:
        """A slot is gone: keep what it carried, and nothing that tells which it was."""
        if self._slots.pop(id(counters), None) is None:
            return
        for channel, gone in self._gone.items():
            gone.a_to_b += counters[channel].a_to_b
            gone.b_to_a += counters[channel].b_to_a

    def total(self) -> tuple[ChannelTraffic, ...]:
        """Return the bytes of all kernels there were."""
        return traffic_of(self._gone, *self._slots.values())
