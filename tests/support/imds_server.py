"""An instance metadata service, version 2, as strict as the real one.

PUT for a token with a lifetime in a header, GET with that token, nothing else; requests that a
proxy passed on are refused, and answers do not live longer than one hop.

Source: EC2 User Guide, "Use the Instance Metadata Service to access instance metadata".
"""

import http.server
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

__all__ = ["ImdsServer", "imds_server"]

_ROLE = "enclave-parent"
_TTL = "x-aws-ec2-metadata-token-ttl-seconds"
_TOKEN = "x-aws-ec2-metadata-token"
_PATH = "/latest/meta-data/iam/security-credentials/"


@dataclass
class ImdsServer:
    """A running service.

    Attributes:
        url: Where it is.
        version: 2; or 1: it has no tokens, as the old service, and answers anybody.
        valid_s: How long the credentials it gives out are valid from now on.
        generation: Counted up when credentials are renewed.
        requests: Method, path and status of each.
    """

    url: str = ""
    version: int = 2
    valid_s: float = 6 * 3600
    generation: int = 1
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    _tokens: dict[str, float] = field(default_factory=dict)

    def key(self) -> str:
        """Return the id of the access key it gives out now."""
        return f"ASIAINSTANCE{self.generation:08}"

    def secret(self) -> str:
        """Return the secret it gives out now."""
        return f"secret-of-the-instance-{self.generation}"

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Return status and body."""
        if "x-forwarded-for" in headers:
            return 403, ""
        if method == "PUT" and path == "/latest/api/token":
            return self._new_token(headers.get(_TTL, ""))
        if method != "GET":
            return 405, ""
        if self.version == 2 and self._tokens.get(headers.get(_TOKEN, ""), 0) < time.monotonic():
            return 401, ""
        if path == _PATH:
            return 200, _ROLE
        if path != _PATH + _ROLE:
            return 404, ""
        expires = datetime.now(UTC) + timedelta(seconds=self.valid_s)
        given = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": self.key(),
            "SecretAccessKey": self.secret(),
            "Token": f"token-of-the-instance-{self.generation}",
            "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return 200, json.dumps(given)

    def _new_token(self, lifetime: str) -> tuple[int, str]:
        if self.version == 1:
            return 404, ""
        if not lifetime.isdigit() or not 1 <= int(lifetime) <= 21600:
            return 400, ""
        token = secrets.token_urlsafe(40)
        self._tokens[token] = time.monotonic() + int(lifetime)
        return 200, token


@contextmanager
def imds_server(version: int = 2) -> Iterator[ImdsServer]:
    """Run one on loopback."""
    service = ImdsServer(version=version)

    class Handler(http.server.BaseHTTPRequestHandler):
        def _serve(self) -> None:
            # The hop limit: an answer that is routed on, out of a container say, dies on the way.
            self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = service.answer(self.command, self.path, headers)
            service.requests.append((self.command, self.path, status))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 200 and self.command == "PUT":
                self.send_header(_TTL, headers[_TTL])
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_HEAD = _serve  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
