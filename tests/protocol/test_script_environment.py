"""Which variables a user may set for a script."""

import pytest

from enclave_protocol.manifest import ManifestError, parse_manifest
from enclave_protocol.package_label import Label, decode_label, encode_label
from enclave_protocol.script_environment import (
    MAX_VARIABLES,
    ScriptEnvironmentError,
    check_environ,
    refused_variable,
)

_REFUSED = """
PYTHONPATH PYTHONSTARTUP PYTHONINSPECT pythonhome LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT GLIBC_TUNABLES
GCONV_PATH MALLOC_TRACE NLSPATH LOCPATH TZDIR OPENSSL_CONF SSL_CERT_FILE SSLKEYLOGFILE BASH_ENV PATH
HOME TMPDIR TORCH_LOGS TORCH_COMPILE_DEBUG TORCHINDUCTOR_CACHE_DIR XLA_FLAGS TF_XLA_FLAGS
NUMBA_CACHE_DIR TRITON_CACHE_DIR JAX_DUMP_IR_TO ORT_LOG MKL_VERBOSE
""".split()  # noqa: SIM905 (a list of literals would be three times as long)


@pytest.mark.parametrize("name", [*_REFUSED, "", "1A", "A-B", "A=B", "A\n", "\u0410", "A" * 129])
def test_refused_whatever_the_owner_says(name: str) -> None:
    assert refused_variable(name) is not None
    with pytest.raises(ScriptEnvironmentError):
        check_environ({name: "x"}, [name])


@pytest.mark.parametrize("name", ["MODE", "LDA_TOPICS", "TEMPERATURE", "RESULT", "LOCATION", "_x"])
def test_what_an_owner_may_take(name: str) -> None:
    check_environ({name: "any\ntext = 'x'"}, (name,))
    with pytest.raises(ScriptEnvironmentError, match=f'env = \\["{name}"\\]'):
        check_environ({name: "x"}, ("OTHER",))
    with pytest.raises(ScriptEnvironmentError) as caught:
        check_environ({name: "secret\0"}, (name,))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("OMP_NUM_THREADS", "4", "/x"),
        ("LANG", "de_DE.UTF-8", "/etc/x"),
        ("LC_ALL", "C", "../x"),
        ("TZ", "America/Argentina/Buenos_Aires", ":/dataset/zone"),
        ("TZ", "Etc/GMT+1", "../../dataset/zone"),
        ("COLUMNS", "80", "80000"),
        ("TOKENIZERS_PARALLELISM", "false", "FALSE\n"),
    ],
)
def test_harmless_ones_need_no_owner(name: str, good: str, bad: str) -> None:
    check_environ({name: good}, ())
    with pytest.raises(ScriptEnvironmentError):
        check_environ({name: bad}, ())


def test_not_too_many() -> None:
    names = [f"V{number}" for number in range(MAX_VARIABLES + 1)]
    with pytest.raises(ScriptEnvironmentError, match="at most"):
        check_environ(dict.fromkeys(names, ""), names)


def _manifest(script: str) -> str:
    return f'[package]\nname = "a"\nversion = "1"\n[scripts]\nrun = {{ file = "a.py", {script} }}\n'


def test_in_a_manifest_and_a_label() -> None:
    scripts = parse_manifest(_manifest('output = "all", env = ["MODE", "LEVEL"]')).scripts
    assert scripts["run"].variables == ("MODE", "LEVEL")
    plain = parse_manifest(_manifest('output = "text"'))
    assert plain.scripts["run"].variables == ()
    for chosen in (scripts, plain.scripts):
        label = Label(
            plain.package, plain.exports, {}, chosen, plain.policy, "0" * 64, 1024, 1, None
        )
        assert decode_label(encode_label(label)) == label
    # Labels of before there was this key stay what they were.
    assert b'"run":{"file":"a.py","output":"text"}' in encode_label(label)


@pytest.mark.parametrize("env", ['["PYTHONPATH"]', '["A-B"]', "[]", '["XLA_FLAGS"]'])
def test_a_manifest_that_cannot_be_meant(env: str) -> None:
    with pytest.raises(ManifestError, match="env"):
        parse_manifest(_manifest(f"env = {env}"))
