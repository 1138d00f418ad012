"""Which of a package's scripts a user means."""

from enclave_protocol.errors import EnclaveError
from enclave_protocol.package_label import Label
from enclave_protocol.plain_text import plain_text

__all__ = ["NoScriptError", "script_name"]


class NoScriptError(EnclaveError):
    """The package has no script by this name."""


def script_name(label: Label, script: str) -> str:
    """Return the name in the label's `scripts` of what a user calls `script`: that, or its file.

    Raises:
        NoScriptError: There is none; the message lists those that there are.
    """
    if script in label.scripts:
        return script
    for name, declared in label.scripts.items():
        if declared.file == script:
            return name
    known = ", ".join(sorted(declared.file for declared in label.scripts.values()))
    raise NoScriptError(
        f"the package has no script {script!r}; it has: {plain_text(known) or 'none'}"
    )
