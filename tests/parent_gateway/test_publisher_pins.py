"""The file of pinned keys: whole, private, changed by one at a time; and `enclave trust`."""

import threading
from pathlib import Path

import pytest

from enclave_parent_gateway.publisher_pins import PublisherPins, PublisherPinsError
from enclave_parent_gateway.runtime_dir import EnclavePaths
from tests.support.enclave_home import EnclaveHome

ONE, TWO = "1f" * 32, "2e" * 32


@pytest.fixture
def pins(tmp_path: Path) -> PublisherPins:
    return PublisherPins(EnclavePaths(tmp_path / "r", tmp_path / "state"))


def test_the_first_key_stays(pins: PublisherPins, tmp_path: Path) -> None:
    assert pins.fingerprint("ACME") == "" and not (tmp_path / "state").exists()
    assert pins.pin_new("ACME", ONE) == ONE
    assert pins.pin_new("ACME", TWO) == ONE
    assert pins.pin_new(" acme\u00a0", TWO) == ONE
    assert pins.fingerprint("Acme") == ONE and pins.fingerprint("Acme 2") == ""
    (pin,) = pins.all()
    assert (pin.publisher, pin.fingerprint, pin.how) == ("ACME", ONE, "first use")
    path = tmp_path / "state" / "publishers.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "publishers.json",
        "publishers.json.lock",
    ]


def test_the_user_changes_and_removes(pins: PublisherPins) -> None:
    assert pins.trust("ACME", ONE) == ""
    assert pins.trust("acme", TWO) == ONE
    assert [pin.fingerprint for pin in pins.all()] == [TWO]
    assert pins.remove("Acme") and not pins.remove("Acme")
    assert pins.all() == []


@pytest.mark.parametrize("fingerprint", ["", "1f" * 31, "1F" * 32, "1f" * 32 + "\n", "zz" * 32])
def test_what_is_no_fingerprint(pins: PublisherPins, fingerprint: str) -> None:
    for change in (pins.trust, pins.pin_new):
        with pytest.raises(PublisherPinsError, match="no fingerprint"):
            change("ACME", fingerprint)
    assert pins.all() == []


@pytest.mark.parametrize("publisher", ["", "  ", "x" * 101, "a\nb", "\x1b[31mACME", "ACME\u3164"])
def test_what_is_no_publisher(pins: PublisherPins, publisher: str) -> None:
    with pytest.raises(PublisherPinsError, match="printable"):
        pins.trust(publisher, ONE)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[", b"{}", b"[1]", b'[{"publisher":"A"}]', bytes(2**20)),
        b'[{"publisher":"\xe8"}]',
    ],
)
def test_a_damaged_file_accepts_nothing(pins: PublisherPins, tmp_path: Path, data: bytes) -> None:
    pins.pin_new("ACME", ONE)
    path = tmp_path / "state" / "publishers.json"
    path.write_bytes(data)
    for use in (pins.all, lambda: pins.fingerprint("New"), lambda: pins.pin_new("New", TWO)):
        with pytest.raises(PublisherPinsError, match="holds no pinned keys"):
            use()
    assert path.read_bytes() == data


def test_nobody_fills_the_disk(pins: PublisherPins, tmp_path: Path) -> None:
    pins.pin_new("p", ONE)
    (pin,) = pins.all()
    path = tmp_path / "state" / "publishers.json"
    entry = path.read_bytes().strip()[1:-1].replace(b'"p"', b'"p%d"')
    path.write_bytes(b"[" + b",".join(entry % n for n in range(2000)) + b"]")
    assert len(pins.all()) == 2000 and pin.publisher == "p"
    with pytest.raises(PublisherPinsError, match="2000 publishers"):
        pins.pin_new("one more", ONE)
    assert pins.pin_new("p7", TWO) == ONE and pins.remove("p7")
    assert pins.pin_new("one more", ONE) == ONE


def test_two_first_uses_at_once_pin_one_key(pins: PublisherPins) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(pins.pin_new("ACME", f"{n:064x}")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_the_command(own_home: EnclaveHome) -> None:
    """It needs no enclave: a key can be accepted before the first package comes."""
    assert "No publisher's key is pinned" in own_home.run("trust").stdout
    spaced = ":".join(ONE[i : i + 2] for i in range(0, 64, 2)).upper()
    assert own_home.run("trust", "ACME Analytics", spaced).returncode == 0
    listed = own_home.run("trust").stdout
    assert listed.startswith(f"{ONE}  ACME Analytics  (trust, ")
    changed = own_home.run("trust", "acme analytics", TWO)
    assert f"The former key was {ONE}." in changed.stdout
    assert own_home.run("trust", "--remove", "ACME Analytics").returncode == 0
    gone = own_home.run("trust", "--remove", "ACME Analytics")
    assert gone.returncode == 1 and len(gone.stderr.splitlines()) == 1
    assert own_home.run("trust", "--json").stdout.strip() == "[]"
    assert own_home.run("trust", "ACME", "short").returncode == 1
    for wrong in (("ACME",), ("--remove",), ("--json", "ACME"), ("--remove", "ACME", ONE)):
        assert own_home.run("trust", *wrong).returncode == 2
    shown = own_home.run("trust", "--help").stdout
    assert 'enclave trust "ACME Analytics"' in shown
