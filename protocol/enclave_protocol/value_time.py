"""Dates, times, spans of time, and the zones they are in.

A zone travels as its key or its offset: no rules of the sender's are taken over. A key is looked
up in this machine's own time zone database.

Source: docs/spec/vault_calls.md, "Values".
"""

import re
import sys
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, Final

from enclave_protocol.value_nodes import Tag, ValueRefusedError

if TYPE_CHECKING:
    from enclave_protocol.value_decoder import Decoder
    from enclave_protocol.value_encoder import Encoder

__all__ = ["DECODERS", "ENCODERS", "decode_zone", "encode_zone"]

_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}", re.ASCII)
_MAX_ZONE_CHARS: Final = 64
_MICROSECOND: Final = timedelta(microseconds=1)


def encode_zone(zone: tzinfo | None) -> object:
    """Return what stands for a time zone: nil, its key, or `[offset in µs, name or nil]`.

    Raises:
        ValueRefusedError: It is of another kind than ZoneInfo with a key and datetime.timezone.
    """
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        return [offset // _MICROSECOND, None if name == timezone(offset).tzname(None) else name]
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo:
        key = zone.key  # type: ignore[attr-defined]
        if type(key) is str and len(key) <= _MAX_ZONE_CHARS and _ZONE_KEY.fullmatch(key):
            return key
    raise ValueRefusedError(
        f"a time zone of type {type(zone).__module__}.{type(zone).__qualname__} cannot cross into "
        "or out of an encrypted package; accepted are zoneinfo.ZoneInfo by key, datetime.timezone"
    )


def decode_zone(node: Any) -> tzinfo | None:
    """Return the time zone that `encode_zone` made this of.

    Raises:
        ValueRefusedError: It is none, or none that this machine's database has.
    """
    if node is None:
        return None
    if type(node) is str and len(node) <= _MAX_ZONE_CHARS and _ZONE_KEY.fullmatch(node):
        from zoneinfo import ZoneInfo

        try:
            return ZoneInfo(node)
        except (KeyError, ValueError, OSError):
            raise ValueRefusedError(
                f"the time zone {node} is not in this machine's database: install tzdata"
            ) from None
    if type(node) is list and len(node) == 2 and type(node[0]) is int:
        offset, name = node
        try:
            delta = timedelta(microseconds=offset)
            if name is None:
                return timezone(delta)
            if type(name) is str and len(name) <= _MAX_ZONE_CHARS:
                return timezone(delta, name)
        except (ValueError, OverflowError):
            # Further from UTC than a day: below.
            pass
    raise ValueRefusedError("a time zone came malformed")


def _encode_date(_encoder: "Encoder", value: date, _depth: int) -> object:
    return [Tag.DATE, value.toordinal()]


def _decode_date(_decoder: "Decoder", node: Any, _depth: int) -> date:
    if type(node[1]) is int and 1 <= node[1] <= date.max.toordinal():
        return date.fromordinal(node[1])
    raise ValueRefusedError("a date came malformed")


def _clock(value: time | datetime) -> list[int]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold]


def _encode_time(_encoder: "Encoder", value: time, _depth: int) -> object:
    return [Tag.TIME, _clock(value), encode_zone(value.tzinfo)]


def _encode_datetime(_encoder: "Encoder", value: datetime, _depth: int) -> object:
    return [Tag.DATETIME, [value.toordinal(), *_clock(value)], encode_zone(value.tzinfo)]


def _decode_time(_decoder: "Decoder", node: Any, _depth: int) -> time:
    zone = decode_zone(node[2])
    try:
        return _time_of(_integers(node[1], 5), zone)
    except (ValueError, OverflowError):
        raise ValueRefusedError("a time came malformed") from None


def _decode_datetime(_decoder: "Decoder", node: Any, _depth: int) -> datetime:
    day, *parts = _integers(node[1], 6)
    zone = decode_zone(node[2])
    try:
        return datetime.combine(date.fromordinal(day), _time_of(parts, zone))
    except (ValueError, OverflowError):
        raise ValueRefusedError("a datetime came malformed") from None


def _time_of(parts: list[int], zone: tzinfo | None) -> time:
    hour, minute, second, microsecond, fold = parts
    return time(hour, minute, second, microsecond, tzinfo=zone, fold=fold)


def _encode_timedelta(_encoder: "Encoder", value: timedelta, _depth: int) -> object:
    return [Tag.TIMEDELTA, [value.days, value.seconds, value.microseconds]]


def _decode_timedelta(_decoder: "Decoder", node: Any, _depth: int) -> timedelta:
    days, seconds, microseconds = _integers(node[1], 3)
    try:
        return timedelta(days, seconds, microseconds)
    except OverflowError:
        raise ValueRefusedError("a timedelta came malformed") from None


def _integers(node: Any, number: int) -> list[int]:
    if type(node) is not list or len(node) != number or any(type(part) is not int for part in node):
        raise ValueRefusedError("a date or time came malformed")
    return node


ENCODERS: Final[Mapping[type, Any]] = {
    date: _encode_date,
    time: _encode_time,
    datetime: _encode_datetime,
    timedelta: _encode_timedelta,
}
DECODERS: Final[Mapping[tuple[int, int], Any]] = {
    (Tag.DATE, 2): _decode_date,
    (Tag.TIME, 3): _decode_time,
    (Tag.DATETIME, 3): _decode_datetime,
    (Tag.TIMEDELTA, 2): _decode_timedelta,
}
