"""`%attest`: the enclave's attestation document, verified in the notebook and shown."""

import base64
import json
import secrets
from typing import TYPE_CHECKING, Any, Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from enclave_kernel.session.not_in_enclave import supervisor_link
from enclave_kernel.session.one_line import in_one_line
from enclave_protocol.plain_text import plain_text

if TYPE_CHECKING:
    from enclave_protocol.attestation_document import AttestationDocument

__all__ = ["AttestMagic"]

_RED, _GREEN, _PLAIN = "\x1b[1;31m", "\x1b[32m", "\x1b[0m"
_NONCE_BYTES: Final = 32
_NAME_CHARS: Final = 20


@magics_class
class AttestMagic(Magics):
    """The magic `%attest`."""

    @line_magic
    def attest(self, line: str) -> None:
        """Have the enclave prove what it is, over a fresh nonce, and show what was verified.

        Usage:
          %attest [--json]

        What you see was verified by code in this notebook and shown through the parent instance.
        The document that --json prints can be verified by anybody, anywhere: it proves that such
        an enclave ran at that time, and not that this notebook runs in it.
        """
        words = line.split()
        if words not in ([], ["--json"]):
            raise UsageError("usage: %attest [--json]")
        with in_one_line():
            report = _report(supervisor_link(self.shell))
        print(json.dumps(report, indent=2) if words else _text(report))  # noqa: T201 (the output)


def _report(link: Any) -> dict[str, Any]:
    """Return what `--json` prints."""
    # Late: a notebook that never asks need not wait for the cryptography behind it.
    from enclave_protocol.attestation_errors import AttestationError
    from enclave_protocol.attestation_report import document_fields
    from enclave_protocol.channel_binding import NOTEBOOK_USER_DATA

    nonce = secrets.token_bytes(_NONCE_BYTES)
    about = link.about()
    data = link.attest(nonce)
    document, root, pinned = _verified(data, nonce)
    if document.user_data != NOTEBOOK_USER_DATA:
        raise AttestationError("the document was made for something else; type %attest again")
    if (document.pcrs[0].hex(), document.module_id) != (about.pcr0, about.module_id):
        raise AttestationError("the document is of another enclave than the supervisor says")
    return document_fields(document) | {
        "confidential": not (document.is_debug or about.development) and pinned,
        "development": about.development,
        "root_sha256": root,
        "root_pinned": pinned,
        "checks": [
            {"name": name, "passed": True, "found": found}
            for name, found in _checks(document, root, pinned)
        ],
        "document": base64.b64encode(data).decode(),
    }


def _verified(data: bytes, nonce: bytes) -> "tuple[AttestationDocument, str, bool]":
    """Return the document, its root's SHA-256, and whether that is AWS Nitro's pinned one."""
    import hashlib
    from datetime import UTC, datetime

    from enclave_protocol.attestation_document import decode_signed_document
    from enclave_protocol.attestation_verify import verify_attestation
    from enclave_protocol.channel_binding import MAX_DOCUMENT_AGE
    from enclave_protocol.nitro_root import AWS_NITRO_ROOT_DER

    shown = decode_signed_document(data).document.cabundle[0]
    pinned = shown == AWS_NITRO_ROOT_DER
    document = verify_attestation(
        data,
        # No notebook knows the root of a local enclave: that chain proves only that it is whole,
        # and is shown as not confidential.
        root=AWS_NITRO_ROOT_DER if pinned else shown,
        now=datetime.now(UTC),
        nonce=nonce,
        allow_debug=True,
        max_age=MAX_DOCUMENT_AGE,
    )
    return document, hashlib.sha256(shown).hexdigest(), pinned


def _checks(document: "AttestationDocument", root: str, pinned: bool) -> list[tuple[str, str]]:
    whose = "AWS Nitro's, pinned" if pinned else "not AWS's: a local stand-in, proves nothing"
    return [
        ("certificate chain", f"{len(document.cabundle)} certificates and a leaf, all P-384"),
        ("root", f"{root[:16]}..., {whose}"),
        ("signature", "the leaf's key signed this document, ES384"),
        ("time", f"written {document.written:%Y-%m-%d %H:%M:%S} UTC, the chain valid now"),
        ("nonce", "32 random bytes of this cell: no replay"),
        ("supervisor", "names the same PCR0 and module"),
    ]


def _text(report: dict[str, Any]) -> str:
    from enclave_protocol.attestation_report import pcr_meaning

    lines: list[str] = []
    if not report["confidential"]:
        why = "debug mode" if report["debug"] else "local or development enclave"
        lines.append(f"{_RED}NOT CONFIDENTIAL ({why}){_PLAIN}")
    lines.append(f"{'module':{_NAME_CHARS}}{plain_text(report['module_id'])}")
    lines += [
        f"{_GREEN}✓{_PLAIN} {check['name']:{_NAME_CHARS - 2}}{plain_text(check['found'])}"
        for check in report["checks"]
    ]
    for index, value in report["pcrs"].items():
        if index == "0" or value.strip("0"):
            lines.append(f"{'PCR' + index:{_NAME_CHARS}}{value}  {pcr_meaning(int(index))}")
    lines.append(
        "PCR0 is what an owner approves: compare it with the image's. Verified by code in this "
        "notebook and shown through the parent instance: you trust both for what you see here."
    )
    return "\n".join(lines)
