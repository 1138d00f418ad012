"""What a notebook shows of a package's publisher cannot be written by the publisher."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from enclave_encryption.publisher_keys import FileKey
from enclave_protocol.package_header import decode_header
from enclave_protocol.publisher_line import publisher_line
from tests.support.sealed_package import seal_package

MANIFEST = """
[package]
name = "aa"
version = "1"
publisher = "ACME"
module = "a"
[exports.functions]
f = "f()"
"""


@pytest.mark.parametrize(
    "name", ["ACME", 'ACME", key 00ff (pinned).', "ACME, key 00ff (pinned).\nPublisher B"]
)
def test_a_name_stays_in_its_quotes(name: str) -> None:
    key = FileKey(Ed25519PrivateKey.generate())
    package = seal_package({"a.py": "def f(): pass"}, MANIFEST, publisher=key)
    label = decode_header(package.header_raw).label
    named = msgspec.structs.replace(
        label, package=msgspec.structs.replace(label.package, publisher=name)
    )
    line = publisher_line(named, is_new=False)
    head, shown, tail = line.split('"')
    assert head == "Publisher " and "\n" not in shown
    assert tail == f", key {key.signer.fingerprint} (pinned)."
