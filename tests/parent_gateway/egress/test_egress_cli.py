import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from enclave_parent_gateway.api import ChangeEgress, EgressRules
from enclave_parent_gateway.egress.allowlist import Rule
from enclave_parent_gateway.errors import RefusedError
from enclave_parent_gateway.gateway_client import ask_blocking
from enclave_parent_gateway.runtime_dir import EnclavePaths
from tests.support.enclave_home import EnclaveHome, kernel, run_code


def texts(home: EnclaveHome, *arguments: str) -> list[str]:
    result = home.run("proxy", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return [rule["text"] for rule in json.loads(result.stdout)["rules"]]


def test_the_list_is_kept_without_an_enclave(own_home: EnclaveHome, tmp_path: Path) -> None:
    assert texts(own_home, "list") == ["kms"]
    listed = own_home.run("proxy", "list").stdout
    assert listed == "kms            AWS KMS, in every region\n"
    file = tmp_path / "vsock-proxy.yaml"
    file.write_text("allowlist:\n- {address: c.example, port: 8443}\n")
    assert texts(own_home, "allow", "s3", "B.example:443", "--region", "eu-west-1") == [
        *("kms", "s3/eu-west-1", "b.example:443")
    ]
    result = own_home.run("proxy", "allow", "--file", str(file))
    assert result.stdout == "Allowed: c.example:8443\n"
    assert texts(own_home, "deny", "kms", "s3", "--region", "eu-west-1") == [
        *("kms", "b.example:443", "c.example:8443")
    ]
    denied = own_home.run("proxy", "deny", "kms", "d.example:1")
    assert denied.stdout == "Denied: kms\nIt was not allowed: d.example:1\n"
    assert texts(own_home, "deny", "b.example:443", "c.example:8443") == []
    assert "Nothing is allowed" in own_home.run("proxy", "list").stdout
    assert own_home.run("proxy", "log").stdout == "No notebook has used the proxy since boot.\n"


def test_private_networks_are_kept_with_their_rule(own_home: EnclaveHome) -> None:
    private = ("--private", "10.0.0.0/16", "--private", "fd12::/16")
    said = own_home.run("proxy", "allow", "kms", "--region", "eu-west-1", *private).stdout
    assert said == "Allowed: kms/eu-west-1  AWS KMS, in eu-west-1, also at 10.0.0.0/16, fd12::/16\n"
    listed = json.loads(own_home.run("proxy", "list", "--json").stdout)["rules"]
    assert [rule["private"] for rule in listed] == [[], ["10.0.0.0/16", "fd12::/16"]]
    own_home.run("proxy", "allow", "kms", "--region", "eu-west-1")
    listed = json.loads(own_home.run("proxy", "list", "--json").stdout)["rules"]
    assert [rule["private"] for rule in listed] == [[], []]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("allow",), 2, "name what to allow"),
        (("allow", "*:443"), 1, "write HOST:PORT"),
        (("allow", "127.1:443"), 1, "unusual form"),
        (("allow", "s3", "--region", "mars"), 1, "names no AWS region"),
        (("allow", "kms", "--private", "0.0.0.0/0"), 1, "write private networks"),
        (("allow", "kms", "--private", "fd00:ec2::/32"), 1, "write private networks"),
        (("allow", "--file", "/nowhere"), 2, "does not exist"),
        (("deny",), 2, "Missing argument"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    own_home: EnclaveHome, arguments: tuple[str, ...], code: int, word: str
) -> None:
    result = own_home.run("proxy", *arguments)
    assert result.returncode == code and word in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [(), ("allow",), ("deny",), ("list",), ("log",)])
def test_help_has_examples(own_home: EnclaveHome, command: tuple[str, ...]) -> None:
    result = own_home.run("proxy", *command, "--help")
    assert result.returncode == 0 and "enclave proxy" in result.stdout.partition("Examples:")[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only a walled notebook has to use the proxy")
def test_it_is_in_force_at_once_and_is_logged(enclave: EnclaveHome) -> None:
    ask = (
        "import socket\n"
        "s = socket.create_connection(('127.0.0.1', 3128))\n"
        "s.sendall(b'CONNECT 127.0.0.1:9 HTTP/1.1\\r\\n\\r\\n')\n"
        "print(s.makefile().readline())"
    )
    with kernel(cwd="/") as (_, client):
        assert "is not allowed; on the parent" in run_code(client, ask)
        assert texts(enclave, "allow", "127.0.0.1:9") == ["kms", "127.0.0.1:9"]
        # By name, and still not: where it leads is decided by address.
        assert "127.0.0.1 is loopback" in run_code(client, ask)
        assert texts(enclave, "deny", "127.0.0.1:9") == ["kms"]
        assert "is not allowed; on the parent" in run_code(client, ask)
    lines = enclave.run("proxy", "log", "--json").stdout.splitlines()
    entries = [json.loads(line) for line in lines[-3:]]
    assert [entry["event"] for entry in entries] == ["refused"] * 3
    assert {entry["destination"] for entry in entries} == {"127.0.0.1:9"}
    assert len({entry["kernel"] for entry in entries}) == 1
    shown = enclave.run("proxy", "log", "-n", "1").stdout
    assert len(shown.splitlines()) == 1 and "refused" in shown and "127.0.0.1:9" in shown


def test_following_the_log(enclave: EnclaveHome) -> None:
    path = EnclavePaths.from_environment().egress_log
    with subprocess.Popen(
        enclave.command("proxy", "log", "-f", "-n", "0"),
        env=enclave.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        try:
            time.sleep(1.5)
            with path.open("a") as file:
                file.write('{"time": 1.0, "event": "closed", "destination": "x.example:1"}\n')
            assert following.stdout is not None
            assert "x.example:1  0 bytes out, 0 in, 0.0 s" in following.stdout.readline()
        finally:
            following.terminate()


def test_the_gateway_takes_no_rule_that_is_none(enclave: EnclaveHome) -> None:
    socket_path = EnclavePaths.from_environment().gateway_socket
    with pytest.raises(RefusedError, match="write HOST:PORT"):
        ask_blocking(socket_path, ChangeEgress(allow=(Rule("*:443"),)), EgressRules)
    assert texts(enclave, "list") == ["kms"]
