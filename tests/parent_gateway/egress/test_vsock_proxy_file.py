from pathlib import Path

import pytest

from enclave_parent_gateway.egress.errors import AllowlistError
from enclave_parent_gateway.egress.vsock_proxy_file import (
    parse_vsock_proxy_file,
    read_vsock_proxy_file,
)


def rules(text: str) -> list[str]:
    return [rule.text for rule in parse_vsock_proxy_file(text)]


def test_the_shape_of_the_tools_own_file() -> None:
    text = """allowlist:
- {address: kms.us-east-2.amazonaws.com, port: 443}
- {address: kms-fips.us-east-2.amazonaws.com, port: 443}
"""
    assert rules(text) == [
        "kms.us-east-2.amazonaws.com:443",
        "kms-fips.us-east-2.amazonaws.com:443",
    ]


def test_what_else_is_read() -> None:
    text = """---
# ours
allowlist:   # all of it
  - {port: 443, address: "a.example"}  # one

  - address: 'b.example'
    port: 8443
  - { address: 52.94.5.1, port: "443" }
  - address: 2600:1f18::1
    port: 443
"""
    assert rules(text) == ["a.example:443", "b.example:8443", "52.94.5.1:443", "[2600:1f18::1]:443"]
    assert rules("allowlist:\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blocklist:\n- {address: a.example, port: 443}\n",
        "- {address: a.example, port: 443}\n",
        "allowlist: [{address: a.example, port: 443}]\n",
        "allowlist:\n{address: a.example, port: 443}\n",
        "allowlist:\n- {address: a.example}\n",
        "allowlist:\n- {address: a.example, port: 443, more: 1}\n",
        "allowlist:\n- {address: a.example, port: 443, port: 80}\n",
        "allowlist:\n- {address: a.example, port: 0}\n",
        "allowlist:\n- {address: a.example, port: 443\n",
        "allowlist:\n- {address: '*.example', port: 443}\n",
        "allowlist:\n- {address: !!python/object/apply:os.system [x], port: 443}\n",
        "allowlist:\n- &a {address: a.example, port: 443}\n- *a\n",
        "allowlist:\n\t- {address: a.example, port: 443}\n",
        "allowlist:\n- {address: a.example, port:443}\n",
        "allowlist:\n- {address: 2130706433, port: 443}\n",
        "allowlist:\n- {address: a.example, port: 443}\nother: 1\n",
        "allowlist:\n- {address: \"a.example', port: 443}\n",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(AllowlistError):
        rules(text)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vsock-proxy.yaml"
    path.write_text("allowlist:\n- {address: a.example, port: 443}\n- {address: b}\n")
    with pytest.raises(AllowlistError, match=r"vsock-proxy\.yaml: line 3"):
        read_vsock_proxy_file(path)
    with pytest.raises(AllowlistError, match="cannot be read"):
        read_vsock_proxy_file(tmp_path / "none")
    path.write_bytes(b"\xff")
    with pytest.raises(AllowlistError, match="cannot be read"):
        read_vsock_proxy_file(path)
