"""`%load_encrypted`, `%encrypted` and `%unload_encrypted`."""

import builtins
import keyword
import re
import shlex
from typing import TYPE_CHECKING, Any, Final

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class

from enclave_kernel.session.attest_magic import AttestMagic
from enclave_kernel.session.batch_comm import accept_runs
from enclave_kernel.session.egress_hint import show_refusals
from enclave_kernel.session.enclave_magic import EnclaveMagic
from enclave_kernel.session.load_progress import LoadProgress
from enclave_kernel.session.not_in_enclave import NotInEnclaveError, supervisor_link
from enclave_kernel.session.one_line import in_one_line
from enclave_kernel.session.pip_magic import PipMagic
from enclave_kernel.session.run_magic import RunMagic
from enclave_protocol.errors import EnclaveError
from enclave_protocol.plain_text import plain_text
from enclave_protocol.publisher_line import publisher, publisher_line

if TYPE_CHECKING:
    from enclave_kernel.session.package_loading import LoadedPackage
    from enclave_kernel.session.vault_link import VaultLink
    from enclave_protocol.package_label import Label

__all__ = [
    "EncryptedMagics",
    "NameNotBindableError",
    "NotInEnclaveError",
    "NotLoadedError",
    "load_ipython_extension",
]

_CHOOSE: Final = "choose another with %load_encrypted FILE as NAME"


_UNSIGNED = "--unsigned"


class NameNotBindableError(EnclaveError):
    """The package would be bound to a name that it must not take."""


class NotLoadedError(EnclaveError):
    """No encrypted package is bound to this name."""


@magics_class
class EncryptedMagics(Magics):
    """Magics for encrypted packages.

    Attributes:
        packages: What is loaded, by the name it is bound to.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.packages: dict[str, LoadedPackage] = {}

    @line_magic
    def load_encrypted(self, line: str) -> None:
        """Load an encrypted package and bind it to one name.

        Usage:
          %load_encrypted FILE [as NAME] [--unsigned]

        Example:
          %load_encrypted credit-scorer-1.2.0.encrypted as scorer

        The first package of a publisher pins the publisher's key, whose fingerprint is shown. One
        that is signed with another key later is refused; `enclave trust`, on the parent instance,
        accepts it. A package that nobody signed loads with --unsigned only.

        Without `as NAME` the name is the one the package's label gives, if nothing else has it.
        Loading it again under a name replaces the package that was loaded under it.
        """
        # Late: it needs NumPy, which must not be imported before the kernel was forked, and which
        # a notebook without packages need not wait for.
        from enclave_kernel.session.package_loading import load_package

        with in_one_line():
            file_name, name, unsigned = _parse_load(line)
            if name is not None:
                self._check_bindable(name)
            progress = LoadProgress()
            try:
                loaded = load_package(file_name, self._link(), progress, unsigned=unsigned)
            finally:
                progress.finish()
            try:
                if name is None:
                    name = _default_name(loaded.label)
                    self._check_bindable(name)
                    self._check_free(name)
            except EnclaveError:
                loaded.client.close()
                raise
            previous = self.packages.pop(name, None)
            if previous is not None:
                previous.client.close("another package was loaded under its name")
            self.packages[name] = loaded
            self._namespace()[name] = loaded.proxy
            print(_summary(loaded, name))  # noqa: T201 (the cell's output)

    @line_magic
    def encrypted(self, line: str) -> None:
        """List the encrypted packages that are loaded.

        Usage:
          %encrypted
        """
        if line.strip():
            raise UsageError("%encrypted takes no arguments; %load_encrypted FILE loads one")
        print(_table(self.packages))  # noqa: T201 (the cell's output)

    @line_magic
    def unload_encrypted(self, line: str) -> None:
        """End an encrypted package's vault and remove the name it is bound to.

        Usage:
          %unload_encrypted NAME

        Its objects raise VaultDiedError from then on.
        """
        name = line.strip()
        if not name:
            raise UsageError("%unload_encrypted needs a NAME; %encrypted lists them")
        with in_one_line():
            loaded = self.packages.pop(name, None)
            if loaded is None:
                known = ", ".join(sorted(self.packages)) or "none is loaded"
                raise NotLoadedError(f"{name!r} is no encrypted package; loaded: {known}")
            loaded.client.close()
            if self._namespace().get(name) is loaded.proxy:
                del self._namespace()[name]
            print(f"Unloaded {_title(loaded.label)}.")  # noqa: T201 (the cell's output)

    def _namespace(self) -> dict[str, Any]:
        if self.shell is None:
            raise NotInEnclaveError("there is no interactive shell to bind a package in")
        namespace: dict[str, Any] = self.shell.user_ns
        return namespace

    def _check_bindable(self, name: str) -> None:
        # Neither may `open` or `print` be replaced, nor what IPython keeps: In, Out, exit, _.
        own = {} if self.shell is None else self.shell.user_ns_hidden
        if (
            not name.isidentifier()
            or keyword.iskeyword(name)
            or hasattr(builtins, name)
            or name in own
        ):
            raise NameNotBindableError(f"{name!r} cannot be the package's name: {_CHOOSE}")

    def _check_free(self, name: str) -> None:
        # The owner chose this name: `pd` or `df` must stay what the user made it (THREATS W-11).
        loaded = self.packages.get(name)
        namespace = self._namespace()
        if name in namespace and (loaded is None or namespace[name] is not loaded.proxy):
            raise NameNotBindableError(
                f"{name!r}, the name the package's label gives, is something of yours: {_CHOOSE}"
            )

    def _link(self) -> "VaultLink":
        return supervisor_link(self.shell)


def _parse_load(line: str) -> tuple[str, str | None, bool]:
    """Return file, name and whether it may be unsigned."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"%load_encrypted FILE [as NAME] [--unsigned]: {error}") from None
    unsigned = _UNSIGNED in words[1:]
    words = [*words[:1], *(word for word in words[1:] if word != _UNSIGNED)]
    if words[:1] == [_UNSIGNED]:
        words, unsigned = words[1:], True
    if len(words) == 1:
        return words[0], None, unsigned
    if len(words) == 3 and words[1] == "as":
        return words[0], words[2], unsigned
    raise UsageError(
        "usage: %load_encrypted FILE [as NAME] [--unsigned]; put a FILE with spaces between quotes"
    )


def _default_name(label: "Label") -> str:
    module = label.package.module.rpartition(".")[2]
    return module or re.sub(r"\W", "_", label.package.name)


def _title(label: "Label") -> str:
    return plain_text(f"{label.package.name} {label.package.version}")


def _exports(label: "Label") -> str:
    names = ", ".join(sorted((*label.exports.classes, *label.exports.functions)))
    return plain_text(names) or "nothing"


def _summary(loaded: "LoadedPackage", name: str) -> str:
    label = loaded.label
    return (
        f"Loaded {_title(label)} as {name}: {_exports(label)}.\n"
        f"{publisher_line(label, is_new=loaded.new_publisher)}"
    )


def _table(packages: "dict[str, LoadedPackage]") -> str:
    if not packages:
        return "No encrypted package is loaded; load one with: %load_encrypted FILE"
    rows = [("NAME", "PACKAGE", "STATE", "PUBLISHER", "EXPORTS", "FILE")]
    for name, loaded in sorted(packages.items()):
        state = "running" if loaded.client.alive else "ended"
        exports = _exports(loaded.label)
        file = plain_text(loaded.file)
        rows.append((name, _title(loaded.label), state, publisher(loaded.label), exports, file))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics with an IPython shell."""
    shell.register_magics(EncryptedMagics, EnclaveMagic, AttestMagic, PipMagic, RunMagic)
    show_refusals(shell)
    accept_runs(shell)
