"""A label for people and for scripts."""

from datetime import datetime
from pathlib import Path

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from enclave_protocol.manifest import Policy
from enclave_protocol.package_header import PackageHeader
from enclave_protocol.package_label import Label
from enclave_protocol.plain_text import plain_text

__all__ = ["label_json", "print_label", "shown_expiry", "shown_size"]


def label_json(header: PackageHeader, file_bytes: int) -> str:
    """Return label, KMS key, encryption context and sizes as one JSON object.

    Args:
        header: The signature was verified, if there is one.
        file_bytes: The file's size.
    """
    signer = header.label.signer
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "label": header.label,
                "kms_key_arn": header.kms_key_arn,
                "fingerprint": None if signer is None else signer.fingerprint,
                "signature_verified": signer is not None,  # of label and body's digest
                "encryption_context": header.encryption_context,
                "header_bytes": len(header.raw),
                "file_bytes": file_bytes,
                "verified": False,  # nobody can without the data key
            }
        ),
        indent=2,
    ).decode()


def print_label(
    console: Console, path: Path, header: PackageHeader, file_bytes: int, now: datetime
) -> None:
    """Print the label for people.

    A label is a stranger's text: markup is not interpreted, nothing in it drives the terminal.

    Args:
        console: Where to.
        path: The file.
        header: Its header; the label is one `check_label` passed, and its signature is verified.
        file_bytes: Its size.
        now: With a zone; tells how long the package can still be used.
    """
    label = header.label
    package, policy = label.package, label.policy
    rows: list[tuple[str, str]] = [
        ("package", f"{package.name} {package.version}"),
        ("description", package.description),
        ("publisher", _publisher(label)),
        ("fingerprint", "" if label.signer is None else label.signer.fingerprint),
        ("signature", _signature(label)),
        ("module", package.module),
        ("requirements", ", ".join(package.requirements)),
        ("scripts", ", ".join(f"{n} ({s.file})" for n, s in label.scripts.items())),
        ("variables", _variables(label)),
        ("contents", f"{label.file_count} files, {shown_size(label.archive_bytes)}"),
        ("file", f"{path} ({shown_size(file_bytes)})"),
        ("KMS key", header.kms_key_arn),
        ("context", ", ".join(f"{k}={v}" for k, v in header.encryption_context.items())),
        ("environment", policy.environment),
        ("output", policy.output),
        ("workspace", policy.workspace),
        ("errors shown", ", ".join(policy.errors) or "none"),
        ("functions called", ", ".join(f"{k}{v}" for k, v in sorted(policy.callbacks.items()))),
        ("native code", "yes" if policy.native else ""),
        ("quotas", _quotas(policy)),
        ("expires", shown_expiry(policy.expires, now) if policy.expires else ""),
    ]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, _plain(value))
    parts: list[RenderableType] = [table]
    exports = _exports(label)
    if exports.row_count:
        parts += [Text(""), exports]
    parts += [
        Text(""),
        Text(
            "Read from the label; the enclave that opens the file verifies the body, too.",
            "dim",
        ),
    ]
    console.print(Group(*parts))


def _publisher(label: Label) -> str:
    name = label.package.publisher
    if label.signer is None:
        return f"{name} (anyone can write this: not signed)" if name else ""
    return name


def _variables(label: Label) -> str:
    """Return which environment variables users may set for which script."""
    taken = {name: script.variables for name, script in label.scripts.items() if script.variables}
    return ", ".join(f"{name}: {' '.join(variables)}" for name, variables in taken.items())


def _signature(label: Label) -> str:
    if label.signer is None:
        return "none: loads with --unsigned only"
    return f"verified, {label.signer.algorithm}: this label is the publisher's"


def shown_size(size: int) -> str:
    """Return a size in bytes for people, such as `15.0 MiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def shown_expiry(expires: str, now: datetime) -> str:
    """Return when a package expires and how far away that is, such as `... (in 67 days)`.

    Args:
        expires: Of a policy that was checked: a time with its zone.
        now: With a zone.
    """
    left_s = (datetime.fromisoformat(expires) - now).total_seconds()
    if left_s <= 0:
        return f"{expires} (expired {_duration(-left_s)} ago: no call is answered any more)"
    return f"{expires} (in {_duration(left_s)})"


def _duration(seconds: float) -> str:
    for unit, length_s in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length_s)
        if count:
            return f"{count:,} {unit}" if count == 1 else f"{count:,} {unit}s"
    return "less than a minute"


def _exports(label: Label) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("exported", overflow="fold")
    table.add_column("returns", no_wrap=True)
    table.add_column("documentation", overflow="fold")
    exports, docs = label.exports, label.docs
    for name, text in exports.functions.items():
        returned = _plain(exports.returned_by(name))
        table.add_row(_plain(text), returned, _plain(docs.get(name, "")))
    for name, exported in exports.classes.items():
        shown = f"class {exported.init or name}"
        table.add_row(_plain(shown), "", _plain(docs.get(name, "")))
        for text in exported.methods:
            method = f"{name}.{text.partition('(')[0]}"
            returned = _plain(exports.returned_by(method))
            table.add_row(_plain(f"  .{text}"), returned, _plain(docs.get(method, "")))
        for attribute in exported.attributes:
            doc = docs.get(f"{name}.{attribute}", "")
            table.add_row(_plain(f"  .{attribute}"), "", _plain(doc))
    return table


def _quotas(policy: Policy) -> str:
    quotas = {
        f"{policy.max_calls:,} {_calls(policy.max_calls)} each time it is loaded": policy.max_calls,
        f"{policy.calls_per_minute:,} {_calls(policy.calls_per_minute)} a minute": (
            policy.calls_per_minute
        ),
        f"{shown_size(policy.max_result_bytes)} a result": policy.max_result_bytes,
    }
    shown = [text for text, limit in quotas.items() if limit]
    return f"at most {', '.join(shown)}" if shown else ""


def _calls(count: int) -> str:
    return "call" if count == 1 else "calls"


def _plain(text: str) -> Text:
    # Never a plain `str`: rich would read markup in it.
    return Text(plain_text(text))
