"""What the name `pypi` stands for: the package index that pip on this machine is set to.

Asked of pip, so that a company's own index is meant where pip is set to one, and pip's default
otherwise.
"""

import json
import subprocess
import sys
from typing import Final
from urllib.parse import urlsplit

from enclave_parent_gateway.egress.allowlist import PACKAGE_INDEX, Rule
from enclave_parent_gateway.egress.destination import parse_destination
from enclave_parent_gateway.egress.errors import AllowlistError, RequestError

__all__ = ["package_index_rule"]

_TIMEOUT_S: Final = 30
# pip has no public call that says what its default is.
_ASK_PIP: Final = """
import json
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
settings = Configuration(isolated=False)
settings.load()
values = {}
for key, value in settings.items():
    values[key.rpartition(".")[2]] = value
print(json.dumps({
    "index": values.get("index-url"),
    "extra": values.get("extra-index-url", ""),
    "default": PyPI.url,
    "files": PyPI.file_storage_domain,
}))
"""


def package_index_rule() -> Rule:
    """Return the rule `pypi` with the hosts that pip talks to. Takes up to a second.

    Raises:
        AllowlistError: There is no pip to ask, or it does not say.
    """
    try:
        answer = subprocess.run(
            # -P: nothing is imported from the folder that the command is typed in.
            [sys.executable, "-P", "-c", _ASK_PIP],
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        said: dict[str, str | None] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise AllowlistError(
            f"what {PACKAGE_INDEX} stands for is asked of pip, which does not answer here; name "
            "the index's hosts instead, as HOST:443"
        ) from error
    return Rule(PACKAGE_INDEX, tuple(dict.fromkeys(_hosts(said))))


def _hosts(said: dict[str, str | None]) -> list[str]:
    urls = [said["index"] or said["default"], *(said["extra"] or "").split()]
    hosts: list[str] = []
    for url in urls:
        parts = urlsplit(url or "")
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            continue
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = parts.port or (443 if parts.scheme == "https" else 80)
        hosts.append(_checked(f"{host}:{port}"))
    if said["index"] is None or said["index"].startswith(said["default"] or "https:"):
        hosts.append(_checked(f"{said['files']}:443"))
    return hosts


def _checked(text: str) -> str:
    try:
        return str(parse_destination(text))
    except RequestError as error:
        raise AllowlistError(f"pip is set to an index at {text!r}: {error}") from None
