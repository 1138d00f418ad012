"""Incident ids: what stands for a place, for whom."""

import hashlib
import hmac

import pytest

from enclave_protocol.incident import (
    IncidentKeyError,
    Place,
    is_incident,
    make_incident,
    parse_incident_key,
    stands_for,
)

_KEY = bytes(range(32))
_PLACE = Place("scorer/model.py", 42)


def test_the_key_tells_the_place() -> None:
    incident = make_incident(_KEY, _PLACE)
    assert is_incident(incident)
    assert stands_for(_KEY, incident, _PLACE)
    others = [Place(_PLACE.path, line) for line in range(1, 2000) if line != 42]
    others += [Place(), Place("scorer/model.p", 42), Place("2\0scorer/model.py", 4)]
    assert not any(stands_for(_KEY, incident, place) for place in others)
    assert not stands_for(bytes(32), incident, _PLACE)


def test_nobody_else_sees_that_two_are_of_one_place() -> None:
    incidents = {make_incident(_KEY, _PLACE) for _ in range(500)}
    assert len(incidents) == 500
    assert len({incident[8:] for incident in incidents}) > 495


def test_what_it_is_made_of() -> None:
    incident = bytes.fromhex(make_incident(_KEY, _PLACE))
    message = b"enclave incident v1\0" + incident[:4] + b"42\0scorer/model.py"
    assert incident[4:] == hmac.new(_KEY, message, hashlib.sha256).digest()[:4]


def test_any_place_has_an_id() -> None:
    # What a package says of its modules is not always what an operating system would.
    for place in (Place(), Place("\ud800.py", 1), Place("x" * 100_000, 2**31)):
        assert stands_for(_KEY, make_incident(_KEY, place), place)


def test_forms() -> None:
    assert not any(map(is_incident, ["", "0" * 15, "0" * 17, "0" * 15 + "g", "0" * 16 + "\n"]))
    assert parse_incident_key(_KEY.hex().upper().encode() + b"\r\n") == _KEY
    for wrong in (b"", _KEY, _KEY.hex().encode()[1:], _KEY.hex().encode() + b" 0", b"0" * 10_000):
        with pytest.raises(IncidentKeyError, match="openssl rand -hex 32"):
            parse_incident_key(wrong)
