"""The WSGI application: checks the signature, then KMS by `kms_service` and S3 by moto."""

import base64
import io
import json
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enclave_infra.local_cloud.aws_errors import AwsError
from enclave_infra.local_cloud.cms_encoding import CmsShape
from enclave_infra.local_cloud.event_log import EventLog
from enclave_infra.local_cloud.kms_parameters import KmsParameters
from enclave_infra.local_cloud.recipient import RecipientVerifier
from enclave_infra.local_cloud.request_signature import SignedRequest, Verified, verify_signature
from enclave_protocol.attestation_document import decode_signed_document

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["LocalCloud"]

_MAX_KMS_BYTES: Final = 256 * 1024
_MAX_S3_BYTES: Final = 1 << 30
_TARGET_PREFIX: Final = "TrentService."
_JSON: Final = "application/x-amz-json-1.1"


class LocalCloud:
    """KMS and S3 behind one endpoint.

    Args:
        root: Root certificate of the software NSM, DER.
        state_dir: Where keys are kept.
        shape: The form of `CiphertextForRecipient`.
        clock: Returns the time, with time zone.
    """

    def __init__(
        self, *, root: bytes, state_dir: Path, shape: CmsShape, clock: Callable[[], datetime]
    ) -> None:
        # moto takes 0.5 s to import, and this variable would override every caller's account.
        os.environ.pop("MOTO_ACCOUNT_ID", None)
        from moto.moto_server.werkzeug_app import create_backend_app

        from enclave_infra.local_cloud.key_store import KeyStore
        from enclave_infra.local_cloud.kms_service import KmsService

        self._clock = clock
        self._events = EventLog(state_dir, clock)
        self._moto_kms: WSGIApplication = create_backend_app("kms")
        self._moto_s3: WSGIApplication = create_backend_app("s3")
        self._kms = KmsService(
            KeyStore(state_dir), RecipientVerifier(root, clock), shape, self._call_moto_kms
        )

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Serve one request."""
        is_kms = "HTTP_X_AMZ_TARGET" in environ
        try:
            request = _read(environ, _MAX_KMS_BYTES if is_kms else _MAX_S3_BYTES)
            verified = verify_signature(request, now=self._clock())
            if verified.service == "kms" and is_kms:
                answer = self._serve_kms(request, verified)
                return _respond(start_response, "200 OK", _JSON, json.dumps(answer).encode())
            if verified.service == "s3" and not is_kms:
                environ["wsgi.input"] = io.BytesIO(request.body)
                environ["HTTP_X_MOTO_ACCOUNT_ID"] = verified.caller.account
                return self._moto_s3(environ, start_response)
            raise AwsError(
                "UnknownOperationException",
                f"the local cloud has no service {verified.service}; it has kms and s3",
            )
        except AwsError as error:
            return _respond_error(start_response, error, is_kms=is_kms)

    def _serve_kms(self, request: SignedRequest, verified: Verified) -> dict[str, Any]:
        target = request.headers.get("x-amz-target", "")
        if not target.startswith(_TARGET_PREFIX):
            raise AwsError("UnknownOperationException", f"not a KMS operation: {target:.80}")
        try:
            values = json.loads(request.body)
        except (ValueError, RecursionError) as error:
            raise AwsError("SerializationException", "the request is not JSON") from error
        operation, parameters = target.removeprefix(_TARGET_PREFIX), KmsParameters(values)
        caller, region = verified.caller, verified.region
        record = partial(self._events.record, operation, values, caller=caller, region=region)
        try:
            answer = self._kms.handle(operation, parameters, caller=caller, region=region)
        except AwsError as error:
            record(pcr0=None, error=error.code)
            raise
        record(pcr0=_image(values), error=None)
        return answer

    def _call_moto_kms(
        self, operation: str, values: dict[str, Any], account: str, region: str
    ) -> dict[str, Any]:
        """Run one KMS operation in moto, in `account`."""
        body = json.dumps(values).encode()
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/",
            "SERVER_NAME": f"kms.{region}.amazonaws.com",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": f"kms.{region}.amazonaws.com",
            "HTTP_X_AMZ_TARGET": _TARGET_PREFIX + operation,
            "HTTP_X_MOTO_ACCOUNT_ID": account,
            "CONTENT_TYPE": _JSON,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        seen: list[str] = []

        def start(status: str, *_: object) -> Callable[[bytes], object]:
            seen.append(status)
            return lambda _: None

        answer = json.loads(b"".join(self._moto_kms(environ, start)) or b"null") or {}
        if not seen[0].startswith("200"):
            code = str(answer.get("__type", "KMSInternalException"))
            raise AwsError(code, str(answer.get("message") or answer.get("Message") or ""))
        return dict(answer)


def _image(values: dict[str, Any]) -> str | None:
    """Return PCR0 of the document that was verified with this request."""
    recipient = values.get("Recipient")
    if recipient is None:
        return None
    document = base64.b64decode(recipient["AttestationDocument"])
    return decode_signed_document(document).document.pcrs[0].hex()


def _read(environ: "WSGIEnvironment", limit: int) -> SignedRequest:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError as error:
        raise AwsError("IncompleteBody", "Content-Length is not a number") from error
    if "HTTP_TRANSFER_ENCODING" in environ or not 0 <= length <= limit:
        raise AwsError("EntityTooLarge", f"send Content-Length of at most {limit} bytes", 413)
    body = environ["wsgi.input"].read(length)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }
    return SignedRequest(
        method=environ["REQUEST_METHOD"],
        target=environ.get("REQUEST_URI") or "/",
        headers=headers,
        body=body,
    )


def _respond(
    start_response: "StartResponse", status: str, content_type: str, body: bytes
) -> list[bytes]:
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def _respond_error(
    start_response: "StartResponse", error: AwsError, *, is_kms: bool
) -> list[bytes]:
    """The JSON of KMS, or the XML of S3."""
    status = f"{error.status} Error"
    if is_kms:
        body = json.dumps({"__type": error.code, "message": error.message}).encode()
        return _respond(start_response, status, _JSON, body)
    from xml.sax.saxutils import escape  # writes, does not parse

    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{escape(error.code)}</Code>'
        f"<Message>{escape(error.message)}</Message></Error>"
    )
    return _respond(start_response, status, "application/xml", text.encode())
