"""THREATS E.20: what Python and the loader take from the environment and from folders."""

import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclave_kernel.key_release_errors import KmsUnreachableError
from enclave_kernel.kms import release_data_key
from enclave_kernel.nsm import NsmClient
from enclave_kernel.rsa_pool import RsaPool
from enclave_kernel.trusted_clock import TrustedClock
from enclave_protocol.key_slot import KeySlot
from enclave_protocol.package_header import decode_header, encode_header
from tests.redteam import attacks
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook
from tests.support.example_package import FILES, KEY_ARN, make_label
from tests.support.local_services import HOST_CREDENTIALS, software_nsm

_LOADER = {
    "LD_PRELOAD": "/nowhere/evil.so",
    "LD_AUDIT": "/nowhere/evil.so",
    "LD_LIBRARY_PATH": "/nowhere",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "GCONV_PATH": "/nowhere",
    "MALLOC_TRACE": "/nowhere/trace",
    "LD_DEBUG": "all",
}
_PYTHON = {
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere/start.py",
    "PYTHONINSPECT": "1",
    "PYTHONBREAKPOINT": "os.abort",
    "PYTHONPROFILEIMPORTTIME": "1",
    "PYTHONPERFSUPPORT": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "error",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONHOME": "/nowhere",
}
_LIBRARIES = {
    "TORCH_LOGS": "all",
    "TORCH_COMPILE_DEBUG": "1",
    "NUMBA_CACHE_DIR": "/tmp/numba",  # noqa: S108 (a bait)
    "XLA_FLAGS": "--xla_dump_to=/tmp/xla",
    "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
}
_AMAZON = {
    "SSL_CERT_FILE": "/nowhere",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": "bait",
    "OPENSSL_CONF": "/nowhere",
}
_EXPECTED = {"PATH", "LANG", "ORT_DISABLE_TELEMETRY", "HOME", "TMPDIR", "LC_CTYPE"}


@needs_root
@pytest.mark.parametrize(
    "bait", [_LOADER, _PYTHON, _LIBRARIES, _AMAZON], ids=["b01", "b02", "b05", "b08"]
)
def test_b01_b02_b05_b08_the_environment_of_a_supervisor(
    modern: Arena, monkeypatch: pytest.MonkeyPatch, bait: dict[str, str]
) -> None:
    """Set where vaults are started from: a vault's environment is made of nothing."""
    look = "import os; result = dict(os.environ)"
    for name, value in bait.items():
        monkeypatch.setenv(name, value)
    # The control: another child of ours has them all.
    child = [sys.executable, "-E", "-c", "import os; print(*os.environ)"]
    if bait not in (_LOADER, _PYTHON):
        seen = subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()
        assert set(bait) <= set(seen)
    with modern.another_vault() as place:
        environ = place.package.run(look)
        assert not set(bait) & set(environ)
        assert set(environ) <= _EXPECTED
        flags = "import sys; result = [sys.flags.isolated, sys.flags.no_site]"
        assert place.package.run(flags) == [1, 1]


def test_b03_nothing_of_site(notebook: HostileNotebook) -> None:
    modules = notebook.value("m.run('import sys; result = sorted(sys.modules)')")
    assert not {"site", "sitecustomize", "usercustomize"} & set(modules)
    path = notebook.value("m.run('import sys; result = sys.path')")
    assert "" not in path and "." not in path and str(notebook.folder) not in path


def test_b04_what_the_user_installs(notebook: HostileNotebook) -> None:
    """A poisoned numpy on the user's own path is the user's; a vault has the image's."""
    evil = notebook.folder / "site" / "numpy"
    evil.mkdir(parents=True)
    (evil / "__init__.py").write_text("raise RuntimeError('evil')\n")
    load = "%load_encrypted marked.encrypted as fresh"
    notebook.cell(f"import sys; sys.path.insert(0, {str(evil.parent)!r})")
    try:
        assert not notebook.cell(load).error
        where = notebook.value("fresh.run('import numpy; result = numpy.__file__')")
        assert str(notebook.folder) not in where
        assert notebook.value("fresh.predict([1.0]).tolist()") == [2.0]
    finally:
        notebook.cell("sys.path.pop(0)\n%unload_encrypted fresh")


def test_b06_b07_hooks_and_tampering_in_the_users_process(notebook: HostileNotebook) -> None:
    code = """
import ctypes, sys
seen = []
sys.setprofile(lambda frame, event, arg: seen.append((frame.f_code.co_name, repr(arg)[:200])))
try:
    m.predict([1.0]); m.best().bias
    try:
        m.fail("runtime")
    except Exception as error:
        seen.append(repr(error))
finally:
    sys.setprofile(None)
print(len(seen) > 10, repr(seen)[:100_000])
sys.modules["enclave_protocol.value_codec"].decode_value = None
"""
    shown = notebook.cell(code)
    assert shown.text.startswith("True") and notebook.clean(shown)
    assert notebook.value("m.predict([1.0]).tolist()") == [2.0]


def _own_authority(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost that vouches for itself; return it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "authority.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


class _FalseKms(BaseHTTPRequestHandler):
    """Whoever gets past TLS gets an answer, and is noted."""

    reached: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.reached.append(self.headers.get("X-Amz-Target", self.path))
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


def test_a06_b08_somebody_between_the_enclave_and_kms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate has the right name; variables that would have it trusted change nothing."""
    certificate, key = _own_authority(tmp_path)
    for name in ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    header = decode_header(encode_header(make_label(FILES), KeySlot(KEY_ARN, b"wrapped")))
    with (
        software_nsm(tmp_path) as nsm,
        NsmClient.open(nsm.endpoint) as client,
        RsaPool(1) as pool,
        ThreadingHTTPServer(("127.0.0.1", 0), _FalseKms) as server,
    ):
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_address[1]}"
        # The control: whoever does trust it, reads its answer.
        trusting = ssl.create_default_context(cafile=str(certificate))
        control = HTTPSConnection("localhost", server.server_address[1], context=trusting)
        control.request("GET", "/control")
        assert control.getresponse().status == 200
        control.close()
        with pytest.raises(KmsUnreachableError, match="SSLError"):
            release_data_key(
                header,
                nsm=client,
                keys=pool,
                credentials=HOST_CREDENTIALS,
                endpoint_url=url,
                clock=TrustedClock(),
            )
        server.shutdown()
    assert _FalseKms.reached == ["/control"]


@needs_root
def test_b08_a_supervisor_takes_nothing_from_its_environment(modern: Arena) -> None:
    """tests/kernel/test_kms.py shows that key release does not; here, what notebooks inherit."""
    with modern.another_notebook() as place:
        environ = place.run(attacks.inherited_state)["environ"]
    assert not {name for name in environ if name.startswith(("AWS_", "SSL_", "LD_"))}
