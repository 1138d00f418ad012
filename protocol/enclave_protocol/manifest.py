"""`enclave.toml`: what an owner says about a package, checked.

The structs are also what a label carries, so their rules hold for both. Whether the exports
exist in the code is not checked here: this module sees no code.

Source: docs/spec/encrypted_package.md, "Manifest".
"""

import builtins
import difflib
import keyword
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from enclave_protocol.callback_schema import CallbackSchemaError, parse_callback
from enclave_protocol.notebook_parameters import NOTEBOOK_SUFFIX
from enclave_protocol.package_errors import PackageError
from enclave_protocol.script_environment import refused_variable
from enclave_protocol.signature import SignatureTextError, is_async, parse_signature

__all__ = [
    "CONTEXT_METHODS",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "NAME_PATTERN",
    "VERSION_PATTERN",
    "ExportedClass",
    "Exports",
    "Manifest",
    "ManifestError",
    "Package",
    "Policy",
    "Script",
    "check_manifest",
    "did_you_mean",
    "parse_manifest",
]

MANIFEST_NAME: Final = "enclave.toml"
MAX_MANIFEST_BYTES: Final = 256 * 1024
"""As much as a label may hold: a longer manifest could never be published."""

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
VERSION_PATTERN: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+!_-]{0,62}[A-Za-z0-9])?")
_REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?(?:\s*[<>=!~]=?=?\s*[0-9][A-Za-z0-9.*+!_-]{0,40}"
    r"(?:\s*,\s*[<>=!~]=?=?\s*[0-9][A-Za-z0-9.*+!_-]{0,40}){0,7})?"
)
CONTEXT_METHODS: Final = ("__enter__()", "__exit__()")
"""Declared among a class's methods, both, they make its objects context managers."""
_CONTEXT_NAMES: Final = ("__enter__", "__exit__")
_MAX_LIMIT: Final = 2**53
"""Limits are plain JSON integers for every reader of a label."""
_RETURNS: Final = ("value", "iter", "none")
_TOML_WORDS: Final = {
    "array": "a list",
    "bool": "true or false",
    "date": "a date",
    "datetime": "a time",
    "float": "a number with a fraction",
    "int": "a whole number",
    "object": "a table",
    "str": "text",
    "time": "a time of day",
}
_ERRORS: Final = frozenset(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
)


class ManifestError(PackageError):
    """`enclave.toml`, or a label made from one, says something that cannot be meant."""


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[package]`: what it is. Empty name or version in a manifest means the default."""

    name: str = ""
    version: str = ""
    description: str = ""
    module: str = ""
    publisher: str = ""
    requirements: tuple[str, ...] = ()


class ExportedClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class reachable by reference; without `init` users get instances only from calls."""

    init: str = ""
    methods: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


class Exports(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[exports]`: all that is reachable, with signatures as text."""

    functions: dict[str, str] = {}
    classes: dict[str, ExportedClass] = {}
    returns: dict[str, str] = {}

    def returned_by(self, name: str) -> str:
        """Return `value`, `iter`, `none` or the class that `name` returns by reference.

        Args:
            name: A function, or `Class.method`; the latter falls back to `method`.
        """
        declared = self.returns.get(name)
        if declared is None:
            declared = self.returns.get(name.rpartition(".")[2])
        return "value" if declared is None else declared


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A runnable file of the package and what of its output the user sees.

    Attributes:
        file: Its path in the package: Python, a notebook, or else a compiled program.
        output: `text` is what it prints; `all` also what it writes to stderr.
        env: Names of environment variables that its user may set; left out for none.
    """

    file: str
    output: Literal["none", "progress", "text", "all"] = "text"
    # Not in a label without it, so that labels of before this key are what they were.
    env: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def variables(self) -> tuple[str, ...]:
        """Names in `env`."""
        return () if isinstance(self.env, msgspec.UnsetType) else self.env

    @property
    def is_program(self) -> bool:
        """Whether it is a compiled program (docs/spec/scripts.md, "Programs")."""
        return not self.file.endswith((".py", NOTEBOOK_SUFFIX))


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[policy]`: what may cross the boundary. 0 means no limit, "" no expiry."""

    errors: tuple[str, ...] = ()
    output: Literal["none", "progress", "text"] = "progress"
    callbacks: dict[str, str] = {}
    workspace: Literal["none", "read"] = "read"
    native: bool = False
    max_calls: int = 0
    max_result_bytes: int = 0
    calls_per_minute: int = 0
    expires: str = ""
    environment: Literal["production", "development"] = "production"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole `enclave.toml`."""

    package: Package = Package()
    exports: Exports = Exports()
    docs: dict[str, str] = {}
    scripts: dict[str, Script] = {}
    policy: Policy = Policy()


def parse_manifest(text: str) -> Manifest:
    """Return what `text`, the contents of an `enclave.toml`, says.

    Args:
        text: TOML of at most 256 KiB.

    Raises:
        ManifestError: Not TOML, an unknown key (the message suggests the nearest), a value of
            the wrong type, or a contradiction, such as a signature under another name.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"more than {MAX_MANIFEST_BYTES} bytes", file=MANIFEST_NAME)
    try:
        table = tomllib.loads(text)
        _check_keys(table, Manifest, "")
        policy = table.get("policy")
        expires = policy.get("expires") if isinstance(policy, dict) else None
        if isinstance(expires, date):  # TOML has dates of its own; a label has text
            table["policy"]["expires"] = expires.isoformat()
        manifest = msgspec.convert(table, Manifest)
        check_manifest(manifest)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ManifestError(f"not TOML: {error}", file=MANIFEST_NAME) from None
    except msgspec.ValidationError as error:
        raise ManifestError(_explain(error), file=MANIFEST_NAME) from None
    except PackageError as error:
        raise error.with_file(MANIFEST_NAME) from None
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Check everything about `manifest` that does not need the code.

    Raises:
        ManifestError: A malformed name, version, script or limit, or a contradiction.
        SignatureTextError: A signature does not parse.
    """
    package = manifest.package
    if package.name and not NAME_PATTERN.fullmatch(package.name):
        raise ManifestError(
            f"[package] name is {package.name!r}, expected 1 to 64 letters, digits, '.', '_' "
            "or '-', with a letter or digit at both ends"
        )
    if package.version and not VERSION_PATTERN.fullmatch(package.version):
        raise ManifestError(
            f"[package] version is {package.version!r}, expected 1 to 64 letters, digits, "
            "'.', '+', '!', '_' or '-'"
        )
    if package.module:
        for part in package.module.split("."):
            _check_identifier(part, f"[package] module {package.module!r}")
    _check_text(package.description, "[package] description")
    _check_text(package.publisher, "[package] publisher")
    for requirement in package.requirements:
        if not _REQUIREMENT.fullmatch(requirement):
            raise ManifestError(
                f"[package] requirements has {requirement!r}, expected for instance 'numpy>=2'"
            )
    _check_exports(manifest.exports)
    _check_docs(manifest)
    for name, script in manifest.scripts.items():
        _check_script(name, script, manifest.policy)
    _check_policy(manifest.policy)
    _check_callbacks(manifest)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_keys(table: Any, struct: type[msgspec.Struct], path: str) -> None:
    """Refuse keys that `struct` does not have; msgspec would, but suggests none."""
    if not isinstance(table, dict):
        return  # of the wrong type: msgspec says so better
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        where = f"{path}.{key}" if path else key
        if key not in fields:
            section = f"[{path}]" if path else "the file"
            hint = _right_table(key) or did_you_mean(key, fields)
            hint = hint or f"; known are {', '.join(fields)}"
            raise ManifestError(f"unknown key {key!r} in {section}{hint}")
        if get_origin(fields[key]) is Literal and isinstance(value, str):
            known = get_args(fields[key])
            if value not in known:
                raise ManifestError(
                    f"[{path}] {key} is {value!r}, expected one of {', '.join(known)}"
                    f"{did_you_mean(value, known)}"
                )
        for nested, inner, label in _nested(value, fields[key], where):
            _check_keys(nested, inner, label)


def _right_table(key: str) -> str:
    """Say where `key` belongs, for one that is right but in the wrong table."""
    for table in msgspec.structs.fields(Manifest):
        if isinstance(table.type, type) and key in getattr(table.type, "__struct_fields__", ()):
            return f"; it belongs in [{table.name}]"
    return ""


def _nested(value: Any, kind: Any, path: str) -> Iterator[tuple[Any, type[msgspec.Struct], str]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield value, kind, path
    elif get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            for key, entry in value.items():
                yield entry, inner, f"{path}.{key}"


def _explain(error: msgspec.ValidationError) -> str:
    message, _, where = str(error).partition(" - at `$")
    place = where.rstrip("`").lstrip(".") or "the file"
    message = re.sub(r"`(\w+)`", lambda word: _TOML_WORDS.get(word[1], word[0]), message)
    return f"{place}: {message[:1].lower()}{message[1:]}"


def _check_text(text: str, where: str) -> None:
    # These are shown in strangers' terminals and notebooks: no escape sequences.
    if not text.replace("\n", "").isprintable():
        raise ManifestError(f"{where} has characters that do not print")


def _check_identifier(name: str, where: str) -> None:
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise ManifestError(f"{where}: {name!r} is not a Python name")


def _check_public(name: str, where: str) -> None:
    _check_identifier(name, where)
    # Underscore names are how Python reaches around every wall; none is ever exported.
    if name.startswith("_"):
        raise ManifestError(f"{where}: {name!r} is private; export a public name instead")


def _check_signature(text: str, expected: str, where: str) -> None:
    try:
        name, _ = parse_signature(text)
    except SignatureTextError as error:
        error.reason = f"{where}: {error.reason}"
        raise
    if name != expected:
        raise ManifestError(f"{where}: the signature is of {name!r}, expected {expected!r}")


def _check_exports(exports: Exports) -> None:
    for name, text in exports.functions.items():
        _check_public(name, "[exports] functions")
        _check_signature(text, name, f"[exports] functions.{name}")
        if name in exports.classes:
            raise ManifestError(f"[exports]: {name!r} is both a function and a class")
    for name, exported in exports.classes.items():
        where = f"[exports] classes.{name}"
        _check_public(name, "[exports] classes")
        if exported.init:
            if is_async(exported.init):
                raise ManifestError(f"{where}.init: objects are made at once; leave out 'async'")
            _check_signature(exported.init, name, f"{where}.init")
        seen: set[str] = set()
        for text in exported.methods:
            method, _ = parse_signature(text)
            if text not in CONTEXT_METHODS:
                _check_public(method, f"{where}.methods")
            _check_once(method, seen, where)
        if len(seen & set(_CONTEXT_NAMES)) == 1:
            raise ManifestError(f"{where}.methods: __enter__() and __exit__() need each other")
        for attribute in exported.attributes:
            _check_public(attribute, f"{where}.attributes")
            _check_once(attribute, seen, where)
    callables = set(_callables(exports))
    for name, returned in exports.returns.items():
        if name not in callables:
            raise ManifestError(
                f"[exports] returns: {name!r} is not exported{did_you_mean(name, callables)}"
            )
        known = [*_RETURNS, *exports.classes]
        if returned not in known:
            raise ManifestError(
                f"[exports] returns.{name} is {returned!r}, expected one of "
                f"{', '.join(known)}{did_you_mean(returned, known)}"
            )


def _check_once(name: str, seen: set[str], where: str) -> None:
    if name in seen:
        raise ManifestError(f"{where}: {name!r} is declared twice")
    seen.add(name)


def _callables(exports: Exports) -> Iterator[str]:
    """Every name `returns` may speak of: functions, methods, `Class.method`."""
    yield from exports.functions
    for name, exported in exports.classes.items():
        for text in exported.methods:
            method, _ = parse_signature(text)
            if method not in _CONTEXT_NAMES:
                yield method
                yield f"{name}.{method}"


def _check_docs(manifest: Manifest) -> None:
    exports = manifest.exports
    known = {*_callables(exports), *exports.classes, *manifest.scripts}
    known.update(
        f"{name}.{attribute}"
        for name, exported in exports.classes.items()
        for attribute in exported.attributes
    )
    for name, text in manifest.docs.items():
        _check_text(text, f"[docs] {name}")
        if name not in known:
            raise ManifestError(f"[docs]: {name!r} is not exported{did_you_mean(name, known)}")


def _check_script(name: str, script: Script, policy: Policy) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise ManifestError(f"[scripts]: {name!r} is not a script name")
    parts = script.file.split("/")
    if any(part in ("", ".", "..") for part in parts) or (script.is_program and not policy.native):
        raise ManifestError(
            f"[scripts] {name}.file is {script.file!r}, expected the path of a .py or .ipynb file "
            "inside the package, or of a compiled program with native = true in [policy]"
        )
    if script.env == ():
        raise ManifestError(f"[scripts] {name}.env names no variable; leave it out")
    for variable in script.variables:
        reason = refused_variable(variable)
        if reason is not None:
            raise ManifestError(f"[scripts] {name}.env: {variable!r} {reason}")


def _check_policy(policy: Policy) -> None:
    for name in policy.errors:
        if name not in _ERRORS:
            raise ManifestError(
                f"[policy] errors: {name!r} is not a built-in exception"
                f"{did_you_mean(name, _ERRORS)}"
            )
    limits: Mapping[str, int] = {
        "max_calls": policy.max_calls,
        "max_result_bytes": policy.max_result_bytes,
        "calls_per_minute": policy.calls_per_minute,
    }
    for name, limit in limits.items():
        if not 0 <= limit <= _MAX_LIMIT:
            raise ManifestError(f"[policy] {name} is {limit}, expected 0 (no limit) to 2**53")
    if policy.expires:
        _check_expiry(policy.expires)


def _check_callbacks(manifest: Manifest) -> None:
    """Check the schemas, and that there is a parameter to pass each function to."""
    if not manifest.policy.callbacks:
        return
    exports = manifest.exports
    texts = list(exports.functions.values())
    for exported in exports.classes.values():
        texts += [exported.init] if exported.init else []
        texts += exported.methods
    known = {name for text in texts for name in parse_signature(text)[1].parameters}
    for name, text in manifest.policy.callbacks.items():
        if name not in known:
            raise ManifestError(
                f"[policy] callbacks: no export has a parameter {name!r}{did_you_mean(name, known)}"
            )
        try:
            parse_callback(text)
        except CallbackSchemaError as error:
            error.reason = f"[policy] callbacks.{name}: {error.reason}"
            raise


def _check_expiry(text: str) -> None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ManifestError(
            f"[policy] expires is {text!r}, expected a time with its zone, "
            "such as 2027-01-31T00:00:00Z"
        )
