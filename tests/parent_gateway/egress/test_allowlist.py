from pathlib import Path

import pytest

from enclave_parent_gateway.egress.allowlist import (
    DEFAULT_RULES,
    Allowlist,
    Rule,
    parse_rule,
    suggested_rule,
)
from enclave_parent_gateway.egress.allowlist_file import AllowlistFile
from enclave_parent_gateway.egress.destination import parse_destination
from enclave_parent_gateway.egress.errors import AllowlistError
from enclave_parent_gateway.egress.package_index import package_index_rule


def allows(rule: str, destination: str) -> bool:
    return Rule(rule).allows(parse_destination(destination))


@pytest.mark.parametrize(
    ("rule", "destination"),
    [
        ("kms", "kms.eu-west-1.amazonaws.com:443"),
        ("kms", "kms-fips.us-gov-east-1.amazonaws.com:443"),
        ("kms", "kms.cn-north-1.amazonaws.com.cn:443"),
        ("kms/eu-west-1", "kms.eu-west-1.amazonaws.com:443"),
        ("s3", "s3.amazonaws.com:443"),
        ("s3", "my.bucket-1.s3.eu-west-1.amazonaws.com:443"),
        ("s3", "b.s3.dualstack.ap-southeast-3.amazonaws.com:443"),
        ("s3/us-east-1", "b.s3.amazonaws.com:443"),
        ("s3/eu-west-1", "b.s3.eu-west-1.amazonaws.com:443"),
        ("a.example:8443", "a.example:8443"),
        ("1.1.1.1:443", "1.1.1.1:443"),
    ],
)
def test_allowed(rule: str, destination: str) -> None:
    assert allows(rule, destination)


@pytest.mark.parametrize(
    ("rule", "destination"),
    [
        ("kms", "kms.eu-west-1.amazonaws.com:80"),
        ("kms", "kms.eu-west-1.amazonaws.com.evil.example:443"),
        ("kms", "evil-kms.eu-west-1.amazonaws.com:443"),
        ("kms", "x.kms.eu-west-1.amazonaws.com:443"),
        ("kms", "kmsxeu-west-1.amazonaws.com:443"),
        ("kms", "kms.evil.amazonaws.com:443"),
        ("kms", "s3.eu-west-1.amazonaws.com:443"),
        ("kms/eu-west-1", "kms.eu-west-2.amazonaws.com:443"),
        ("s3/eu-west-1", "s3.amazonaws.com:443"),
        ("s3/eu-west-1", "b.s3.us-east-1.amazonaws.com:443"),
        ("s3", "evils3.amazonaws.com:443"),
        ("s3", "s3.evil.example:443"),
        ("s3", "b.execute-api.eu-west-1.amazonaws.com:443"),
        ("a.example:443", "a.example:80"),
        ("a.example:443", "b.a.example:443"),
    ],
)
def test_not_allowed(rule: str, destination: str) -> None:
    assert not allows(rule, destination)


@pytest.mark.parametrize(
    "text",
    ["", "kms/", "kms/x", "s3/eu", "pypi/eu-west-1", "a.example", "*:443", "ec2", "0:80"],
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(AllowlistError):
        parse_rule(text)


def test_suggestions() -> None:
    for destination, rule in (
        ("kms.eu-west-1.amazonaws.com:443", "kms"),
        ("b.s3.eu-west-1.amazonaws.com:443", "s3"),
        ("a.example:443", "a.example:443"),
    ):
        assert suggested_rule(parse_destination(destination)) == rule


def test_too_many_rules() -> None:
    with pytest.raises(AllowlistError, match="at most"):
        Allowlist(Rule(f"a{number}.example:443") for number in range(1025))


def test_the_file(tmp_path: Path) -> None:
    file = AllowlistFile(tmp_path)
    assert file.read().rules == DEFAULT_RULES == (Rule("kms"),)
    file.change([Rule("a.example:443"), Rule("pypi", ("b.example:443",))], [])
    file.change([], ["kms", "not-there:1"])
    again = AllowlistFile(tmp_path).read()
    assert again.rules == (Rule("a.example:443"), Rule("pypi", ("b.example:443",)))
    assert again.allows(parse_destination("b.example:443"))
    assert not again.allows(parse_destination("kms.eu-west-1.amazonaws.com:443"))
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.change([], ["a.example:443", "pypi"])
    assert AllowlistFile(tmp_path).read().rules == ()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", '{"rules": [{"text": "*:443"}]}', '{"rules": [], "more": 1}'),
        *('{"rules": [{"text": "A.example:443"}]}', '{"rules": [{"text": "kms", "hosts": ["*"]}]}'),
    ],
)
def test_a_file_that_is_none_allows_nothing(tmp_path: Path, text: str) -> None:
    file = AllowlistFile(tmp_path)
    file.path.write_text(text)
    with pytest.raises(AllowlistError):
        file.read()


def test_a_rule_that_is_none_is_not_written(tmp_path: Path) -> None:
    file = AllowlistFile(tmp_path)
    with pytest.raises(AllowlistError):
        file.change([Rule("*:443")], [])
    assert not file.path.exists()


def test_pypi_is_what_pip_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    default = package_index_rule()
    assert default.text == "pypi" and len(default.hosts) == 2
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:token@packages.corp.example:8443/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://more.corp.example/simple file:///srv/x")
    own = package_index_rule()
    assert own.hosts == ("packages.corp.example:8443", "more.corp.example:80")
    monkeypatch.setenv("PIP_INDEX_URL", "https://2130706433/simple")
    with pytest.raises(AllowlistError, match="unusual form"):
        package_index_rule()
