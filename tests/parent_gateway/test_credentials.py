import http.client
import http.server
import logging
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from enclave_parent_gateway.credentials import CredentialsError, default_credentials
from enclave_protocol.messages import Credentials, Envelope
from tests.support.imds_server import ImdsServer, imds_server


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken")
    found = default_credentials()
    assert found == Credentials("AKID", "s3cret", "t0ken")
    assert "s3cret" not in repr(found)
    assert "t0ken" not in repr(found)


def test_none() -> None:
    with pytest.raises(CredentialsError, match="no AWS credentials"):
        default_credentials()


def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(CredentialsError, match="nobody"):
        default_credentials()


@pytest.fixture
def metadata(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ImdsServer]:
    with imds_server(version=getattr(request, "param", 2)) as service:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        monkeypatch.delenv("HTTP_PROXY", raising=False)
        monkeypatch.delenv("http_proxy", raising=False)
        yield service


def test_from_the_instance(metadata: ImdsServer) -> None:
    found = default_credentials()
    assert found.access_key_id == metadata.key()
    assert found.secret_access_key == metadata.secret()
    assert found.session_token == "token-of-the-instance-1"
    assert [method for method, _, _ in metadata.requests] == ["PUT", "GET", "GET"]
    assert {status for _, _, status in metadata.requests} == {200}


def test_the_instances_credentials_are_asked_for_anew(metadata: ImdsServer) -> None:
    """Renewed at the source in between: the next request has the new ones, long before expiry."""
    assert default_credentials().access_key_id == metadata.key()
    metadata.generation += 1
    found = default_credentials()
    assert found.access_key_id == metadata.key() == "ASIAINSTANCE00000002"
    assert found.session_token == "token-of-the-instance-2"
    # About to expire: what is sent is what there is, and the next one is asked for again.
    metadata.valid_s = 30
    metadata.generation += 1
    assert default_credentials().secret_access_key == metadata.secret()
    metadata.generation += 1
    assert default_credentials().secret_access_key == metadata.secret()


@pytest.mark.parametrize("metadata", [1], indirect=True)
def test_version_1_of_the_metadata_service_is_not_asked(metadata: ImdsServer) -> None:
    with pytest.raises(CredentialsError, match="IMDSv1 has been disabled"):
        default_credentials()
    assert {method for method, _, _ in metadata.requests} == {"PUT"}


def test_metadata_through_a_proxy_is_refused(
    metadata: ImdsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's own rule for what was passed on to it; here by a proxy that says so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            headers = {**dict(self.headers.items()), "X-Forwarded-For": "192.0.2.1"}
            connection = http.client.HTTPConnection(urlsplit(metadata.url).netloc, timeout=5)
            connection.request("PUT", urlsplit(self.path).path, headers=headers)
            self.send_response(connection.getresponse().status)
            self.end_headers()
            connection.close()

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        try:
            with pytest.raises(CredentialsError, match="IMDSv1 has been disabled"):
                default_credentials()
        finally:
            proxy.shutdown()
            thread.join()
    assert metadata.requests == [("PUT", "/latest/api/token", 403)]


def test_the_metadata_service_wants_all_of_its_rules_kept(metadata: ImdsServer) -> None:
    """The test's service is no easier than the real one."""
    where = urlsplit(metadata.url).netloc
    token = "x-aws-ec2-metadata-token"

    def ask(method: str, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(where, timeout=5)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        answer = response.status, response.read().decode()
        connection.close()
        return answer

    role = "/latest/meta-data/iam/security-credentials/"
    ttl = f"{token}-ttl-seconds".replace("-", "_")
    assert ask("GET", role)[0] == 401
    assert ask("GET", role, **{token.replace("-", "_"): "made-up"})[0] == 401
    for lifetime in ({}, {ttl: "0"}, {ttl: "21601"}, {ttl: "x"}):
        assert ask("PUT", "/latest/api/token", **lifetime)[0] == 400
    status, short = ask("PUT", "/latest/api/token", **{ttl: "1"})
    assert status == 200
    assert ask("GET", role, **{token.replace("-", "_"): short}) == (200, "enclave-parent")
    time.sleep(1.1)
    assert ask("GET", role, **{token.replace("-", "_"): short})[0] == 401
    assert ask("POST", "/latest/api/token", **{ttl: "60"})[0] == 405


def test_secrets_are_in_no_log(metadata: ImdsServer, caplog: pytest.LogCaptureFixture) -> None:
    """With everything that a gateway may be asked to log."""
    caplog.set_level(logging.INFO)
    found = default_credentials()
    shown = caplog.text + repr(found) + str(Envelope(found, reply_to=1))
    assert metadata.secret() not in shown and "token-of-the-instance" not in shown
