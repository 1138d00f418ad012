"""Which environment variables a user may set for a script of a package. Values only, no I/O.

A variable is a switch in code that its user does not see: of the interpreter, the C library and of
every library that the package imports. Some of these write what they compile to a file, and a file
in the output folder comes back. So the owner names the variables that a script takes, and without
being named pass only those that cannot say more than how many threads, which language or zone.

Source: docs/spec/scripts.md, "Environment"; THREATS, B-01, B-02, B-05, T-11.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = [
    "MAX_VALUE_CHARS",
    "MAX_VARIABLES",
    "ScriptEnvironmentError",
    "check_environ",
    "refused_variable",
]

MAX_VARIABLES: Final = 64
MAX_VALUE_CHARS: Final = 8192

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INTERPRETER: Final = re.compile(
    r"""
      PYTHON.*                                               # the interpreter
    | (LD|DYLD|GLIBC|MALLOC|GCONV|BASH)_.*                   # the loader and the C library
    | NLSPATH | LOCPATH | TZDIR | RES_OPTIONS | HOSTALIASES | LOCALDOMAIN
    | (OPENSSL|SSL|CURL)_.* | SSLKEYLOGFILE | REQUESTS_CA_BUNDLE
    | ENV | IFS | SHELL | PATH | HOME | TMP | TEMP | TMPDIR | PWD
    | (IPYTHON|JUPYTER|PYDEVD|DEBUGPY|COVERAGE|PYTEST).*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DUMPS: Final = re.compile(
    r"""
      (TORCH|TORCHINDUCTOR|TORCHDYNAMO|TORCH_COMPILE|AOT|PYTORCH|XLA|JAX|JAXLIB|MLIR|LLVM)_.*
    | (TF_XLA|TF_DUMP|TVM|TRITON|NUMBA|ORT|ONNXRUNTIME|OPENVINO|DNNL|ONEDNN)_.* | MKL_VERBOSE
    | GMON_OUT_PREFIX | (GCOV|LLVM_PROFILE)_.* | [A-Z]*SAN_OPTIONS | OMP_TOOL.*  # of compilers
    | GODEBUG | GOTRACEBACK | RUST_BACKTRACE | NODE_OPTIONS | (_JAVA|JAVA_TOOL|JDK_JAVA)_OPTIONS
    | _STDBUF_.*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_COUNT: Final = re.compile(r"[0-9]{1,4}")
_LOCALE: Final = re.compile(r"[A-Za-z0-9_.@-]{0,64}")
_ZONE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,3}")
_HARMLESS: Final = (
    (re.compile(r"(OMP|OPENBLAS|MKL|BLIS|NUMEXPR|VECLIB|RAYON)_NUM_THREADS|COLUMNS|LINES"), _COUNT),
    (re.compile(r"LANG|LANGUAGE|LC_[A-Z]{1,20}"), _LOCALE),
    (re.compile(r"TZ"), _ZONE),
    (re.compile(r"NO_COLOR|TOKENIZERS_PARALLELISM"), re.compile(r"[a-z0-9]{0,8}")),
)


class ScriptEnvironmentError(EnclaveError):
    """A variable that must not be set for this script."""


def refused_variable(name: str) -> str | None:
    """Return why no script takes a variable by this name, whatever its owner says; None: it may."""
    if not _NAME.fullmatch(name):
        return "is no name of a variable"
    if _INTERPRETER.fullmatch(name):
        return "changes the interpreter, the C library or whom they trust: no script takes it"
    if _DUMPS.fullmatch(name):
        return "makes libraries or programs show what is inside: no script takes it"
    return None


def check_environ(environ: Mapping[str, str], declared: Collection[str]) -> None:
    """Check the variables that a user sets for a script.

    Args:
        environ: By name.
        declared: Names that the script's owner takes (`Script.variables`).

    Raises:
        ScriptEnvironmentError: One must not be set, or not to this value; the value is not told.
    """
    if len(environ) > MAX_VARIABLES:
        raise ScriptEnvironmentError(
            f"{len(environ)} variables are set, at most {MAX_VARIABLES} can be"
        )
    for name, value in environ.items():
        reason = refused_variable(name)
        if reason is not None:
            raise ScriptEnvironmentError(f"the variable {name[:128]!r} {reason}")
        if len(value) > MAX_VALUE_CHARS or "\0" in value or not _is_text(value):
            raise ScriptEnvironmentError(
                f"the value of {name} is longer than {MAX_VALUE_CHARS} characters, or no text"
            )
        if name in declared:
            continue
        pattern = next((value for known, value in _HARMLESS if known.fullmatch(name)), None)
        if pattern is None:
            known = ", ".join(sorted(declared)) or "none"
            raise ScriptEnvironmentError(
                f"the script's owner takes no variable {name} (taken: {known}); give it as an "
                f'argument, or ask the owner for env = ["{name}"] in [scripts]'
            )
        if not pattern.fullmatch(value):
            raise ScriptEnvironmentError(f"the value of {name} is not one that it can have")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
