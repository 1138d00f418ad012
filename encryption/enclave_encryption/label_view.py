"""A label for people and for scripts."""

from pathlib import Path

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from enclave_protocol.package_header import PackageHeader
from enclave_protocol.package_label import Label
from enclave_protocol.plain_text import plain_text

__all__ = ["label_json", "print_label", "shown_size"]


def label_json(header: PackageHeader, file_bytes: int) -> str:
    """Return the label, the encryption context and sizes as one JSON object."""
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "label": header.label,
                "encryption_context": header.encryption_context,
                "header_bytes": len(header.raw),
                "file_bytes": file_bytes,
                "verified": False,  # nobody can without the data key
            }
        ),
        indent=2,
    ).decode()


def print_label(console: Console, path: Path, header: PackageHeader, file_bytes: int) -> None:
    """Print the label for people.

    A label is a stranger's text: markup is not interpreted, nothing in it drives the terminal.
    """
    label = header.label
    package, policy = label.package, label.policy
    rows: list[tuple[str, str]] = [
        ("package", f"{package.name} {package.version}"),
        ("description", package.description),
        ("publisher", f"{package.publisher} (not verified)" if package.publisher else ""),
        ("module", package.module),
        ("requirements", ", ".join(package.requirements)),
        ("scripts", ", ".join(f"{n} ({s.file})" for n, s in label.scripts.items())),
        ("contents", f"{label.file_count} files, {shown_size(label.archive_bytes)}"),
        ("file", f"{path} ({shown_size(file_bytes)})"),
        ("KMS key", label.kms_key_arn),
        ("context", ", ".join(f"{k}={v}" for k, v in header.encryption_context.items())),
        ("environment", policy.environment),
        ("output", policy.output),
        ("workspace", policy.workspace),
        ("errors shown", ", ".join(policy.errors) or "none"),
        ("functions called", ", ".join(f"{k}{v}" for k, v in sorted(policy.callbacks.items()))),
        ("native code", "yes" if policy.native else ""),
        ("limits", _limits(label)),
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
        Text("Read from the label; only the enclave that opens the file verifies it.", "dim"),
    ]
    console.print(Group(*parts))


def shown_size(size: int) -> str:
    """Return a size in bytes for people, such as `15.0 MiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


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


def _limits(label: Label) -> str:
    policy = label.policy
    limits = {
        "calls": policy.max_calls,
        "bytes a result": policy.max_result_bytes,
        "calls a minute": policy.calls_per_minute,
    }
    shown = [f"{limit} {name}" for name, limit in limits.items() if limit]
    return ", ".join([*shown, *([f"expires {policy.expires}"] if policy.expires else [])])


def _plain(text: str) -> Text:
    # Never a plain `str`: rich would read markup in it.
    return Text(plain_text(text))
