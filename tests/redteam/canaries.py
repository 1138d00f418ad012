"""The canary oracle of THREATS section E: unique random markers in every part of a package.

    package = marked_package()
    ... hostile cells ...
    assert package.found_in_bytes(output) == set()
    assert package.found_in_process(notebook_pid) == set()
    assert package.found_in_files([folder]) == set()
    assert package.found_in_process(vault_pid) >= package.in_vault     # or nothing was proved

The data key is a marker as well. Weights are marked as text and as numbers.
"""

import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["MANIFEST", "PARTS", "MarkedPackage", "marked_package"]

PARTS: Final = (
    *("comment", "module_doc", "function_doc", "class_doc", "method_doc", "constant", "blob"),
    *("default", "annotation", "local", "function_name", "class_name", "attribute_name"),
    *("argument_name", "module_name", "error_name", "message", "cause", "note", "file_name"),
    *("weights", "json", "attribute", "key_error", "line_comment"),
)
_BINARY: Final = ("numbers",)
_MAX_FILE_BYTES: Final = 256 * 2**20
_PIECE_BYTES: Final = 64 * 2**20

MANIFEST: Final = """
[package]
name = "marked"
version = "1.0"
module = "marked"
description = "What the owner says in public."
publisher = "ACME Analytics"
[exports.functions]
run = "run(code)"
predict = "predict(x, scale=..., *, rows=2)"
noisy = "noisy(how)"
fail = "fail(kind)"
leak = "leak(kind)"
best = "best()"
nap = "nap(seconds)"
vault_number = "vault_number()"
[exports.classes]
Model = { init = "Model(bias=0.0)", methods = ["predict(x)", "clone()"], attributes = ["bias"] }
Other = { init = "Other()", methods = ["predict(x)"] }
[exports.returns]
best = "Model"
"Model.clone" = "Model"
[docs]
predict = "Public: scale some numbers."
"Model.predict" = "Public: predict."
[policy]
errors = ["ValueError", "TypeError", "UnicodeDecodeError", "SyntaxError", "KeyError"]
"""

_SOURCE: Final = '''
"""{module_doc}"""
# {comment}
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from marked.m_{module_name} import private_helper

BLOB = b"{blob}"
CONSTANT = "{constant}"
WEIGHTS = np.load(Path(__file__).parent / "{file_name}.npy")
TEXT_WEIGHTS = (Path(__file__).parent / "{file_name}.bin").read_bytes()


class E_{error_name}(ValueError):
    pass


class C_{class_name}:
    """{class_doc}"""

    a_{attribute_name} = "{attribute}"

    def __getattr__(self, name):
        return "{attribute}"


class Model(C_{class_name}):
    """{class_doc}"""

    weights: "{annotation}" = WEIGHTS

    def __init__(self, bias=0.0):
        self.bias = bias

    def predict(self, x, a_{argument_name}=0):
        """{method_doc}"""
        return np.asarray(x, float) * 2 + self.bias

    def clone(self):
        return Model(self.bias)

    def __repr__(self):
        return CONSTANT

    _repr_html_ = __repr__


class Other(Model):
    def __init__(self):
        self.bias = 1.0


def f_{function_name}(value="{default}"):
    """{function_doc}"""
    return value


def predict(x, scale="{default}", *, rows: "{annotation}" = 2):
    """{function_doc}"""
    inner = "{local}"  # {line_comment}
    return np.asarray(x, float) * len(inner[:rows])


def best():
    return Model(bias=6.0)


def nap(seconds):
    time.sleep(seconds)


def vault_number():
    return os.getuid()


def noisy(how):
    import ctypes, faulthandler, logging, traceback
    if how == "print":
        print(CONSTANT, flush=True)
    elif how == "stderr":
        sys.stderr.write(CONSTANT)
        sys.stderr.flush()
    elif how == "write":
        os.write(1, CONSTANT.encode())
        os.write(2, CONSTANT.encode())
    elif how == "printf":
        libc = ctypes.CDLL(None)
        libc.printf(CONSTANT.encode())
        libc.fflush(None)
    elif how == "logging":
        logging.basicConfig(level=logging.DEBUG)
        logging.getLogger(CONSTANT).error(CONSTANT)
    elif how == "traceback":
        try:
            raise E_{error_name}("{message}")
        except ValueError:
            traceback.print_exc()
    elif how == "warning":
        warnings.warn(CONSTANT)  # {line_comment}
    elif how == "faulthandler":
        faulthandler.dump_traceback(file=2)
    elif how == "tqdm":
        sys.stderr.write("\\r" + CONSTANT + " 10%")
    elif how == "thread":
        import threading
        def boom():
            raise RuntimeError("{message}")
        thread = threading.Thread(target=boom)
        thread.start()
        thread.join()
    elif how == "unraisable":
        class Boom:
            def __del__(self):
                raise RuntimeError("{message}")
        Boom()
    elif how == "displayhook":
        sys.displayhook(CONSTANT)
    elif how == "asyncio":
        import asyncio
        async def boom():
            asyncio.get_running_loop().call_exception_handler({{"message": CONSTANT}})
        asyncio.run(boom())
    else:
        raise ValueError("no such noise")


def fail(kind):
    if kind == "runtime":
        raise RuntimeError("{message}")
    if kind == "subclass":
        raise E_{error_name}("{message}")
    if kind == "cause":
        raise ValueError("public") from RuntimeError("{cause}")
    if kind == "context":
        try:
            raise RuntimeError("{cause}")
        except RuntimeError:
            raise ValueError("public")
    if kind == "note":
        error = ValueError("public")
        error.add_note("{note}")
        raise error
    if kind == "group":
        raise ExceptionGroup("{message}", [ValueError("{note}")])
    if kind == "unicode":
        b"{blob}\\xff".decode("utf-8")
    if kind == "json":
        json.loads('{{"x": "{json}"')
    if kind == "syntax":
        compile("def (:  # {json}", "{file_name}", "exec")
    if kind == "key":
        {{}}["{key_error}", 1]
    if kind == "attribute":
        object().__getattribute__("{attribute}")
    if kind == "args":
        raise ValueError("public", "{message}")
    if kind == "object":
        raise ValueError(E_{error_name}("{message}"))
    if kind == "os":
        open("/nowhere/{file_name}")
    if kind == "import":
        import marked.m_{module_name}.absent_{constant}
    if kind == "stop":
        raise StopIteration("{message}")
    if kind == "exit":
        sys.exit("{message}")
    if kind == "generator":
        raise GeneratorExit("{message}")
    if kind == "keyboard":
        raise KeyboardInterrupt("{message}")
    if kind == "base":
        class Odd(BaseException):
            pass
        raise Odd("{message}")
    if kind == "recursion":
        fail(kind)
    if kind == "memory":
        raise MemoryError("{message}")
    if kind == "breakpoint":
        breakpoint()
    if kind == "name":
        undefined_{constant}
    if kind == "public":
        raise ValueError("what the owner says in public")
    return kind


def leak(kind):
    import types
    made = {{
        "function": f_{function_name}, "class": Model, "module": json,
        "generator": (x for x in [1]), "code": predict.__code__,
        "exception": ValueError("{message}"),
        "memoryview": memoryview(BLOB), "masked": np.ma.array([1.0, 2.0], mask=[0, 1]),
        "objects": np.array([CONSTANT, None], dtype=object),
        "structured": np.zeros(2, dtype=[("a", "i1"), ("b", "f8")]),
        "subclass": types.MappingProxyType({{"a": CONSTANT}}),
        "dict": type("D", (dict,), {{}})(a=CONSTANT), "bound": Model().predict,
        "model": Model(), "nested": {{"m": Model()}}, "frame": sys._getframe(),
        "str": type("S", (str,), {{}})(CONSTANT), "path": Path("/{file_name}"),
    }}
    return made[kind]


def run(code):
    """Tests only: what a real owner must never do. It makes the package adversary K."""
    scope = {{"__name__": "marked.hostile"}}
    exec(code, scope)
    return scope.get("result")
'''

_HELPER: Final = '''
"""{module_doc}"""


def private_helper(a_{argument_name}="{default}"):
    return "{constant}"
'''


@dataclass(frozen=True)
class MarkedPackage:
    """A package's files, and what to look for.

    Attributes:
        files: By path, `enclave.toml` aside.
        markers: What must not get out, by part.
        prefix: What all markers of text begin with: one search instead of thirty.
        key: The data key, once known: a marker as well.
    """

    files: Mapping[str, str | bytes]
    markers: Mapping[str, bytes]
    prefix: bytes
    key: bytes | None = None

    @property
    def in_vault(self) -> set[str]:
        """Parts that are in a vault's memory while the package is loaded.

        The source is, and so is whatever was made of it; the key is wiped before.
        """
        return set(self.markers)

    def found_in_bytes(self, data: bytes | str) -> set[str]:
        """Return the parts whose marker is in `data`, in any encoding that is looked for."""
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogatepass")
        # Wide characters are the same with zeros between them; most of a memory is zeros anyway.
        text = data.translate(None, b"\0")
        likely = {}
        if any(form in text for form in _forms(self.prefix)):
            likely = {part: self.markers[part] for part in self.markers if part not in _BINARY}
        found = {
            part for part, marker in likely.items() if any(form in text for form in _forms(marker))
        }
        for part in _BINARY:
            if any(form in data for form in _forms(self.markers[part])):
                found.add(part)
        if self.key is not None and any(form in data for form in _forms(self.key)):
            found.add("key")
        return found

    def found_in_process(self, pid: int) -> set[str]:
        """Return the parts whose marker is in the memory of a process; needs root."""
        found: set[str] = set()
        for piece in _memory(pid):
            found |= self.found_in_bytes(piece)
        return found

    def found_in_files(self, folders: Iterable[Path], *, changed_after: float = 0.0) -> set[str]:
        """Return the parts whose marker is in a regular file below `folders`, or in its name.

        Args:
            folders: Where to look; links are not followed.
            changed_after: Files that changed before are left out; in seconds of the epoch.
        """
        found: set[str] = set()
        for path in _files(folders, changed_after):
            found |= self.found_in_bytes(str(path))
            try:
                with path.open("rb") as file:
                    while piece := file.read(_PIECE_BYTES):
                        found |= self.found_in_bytes(piece)
            except OSError:
                continue
        return found


def marked_package(key: bytes | None = None) -> MarkedPackage:
    """Return a package with a new marker in each of `PARTS`, and in the numbers of its weights."""
    prefix = f"cnry{secrets.token_hex(6)}"
    texts = {part: f"{prefix}{secrets.token_hex(8)}" for part in PARTS}
    numbers = np.random.default_rng().random(512)
    name = texts["file_name"]
    files: dict[str, str | bytes] = {
        "marked/__init__.py": _SOURCE.format(**texts),
        f"marked/m_{texts['module_name']}.py": _HELPER.format(**texts),
        f"marked/{name}.bin": texts["weights"].encode() * 200,
        f"marked/{name}.npy": _npy(numbers),
    }
    markers = {part: text.encode() for part, text in texts.items()}
    markers["numbers"] = numbers[100:104].tobytes()
    return MarkedPackage(files, markers, prefix.encode(), key)


def _npy(numbers: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> bytes:
    stream = io.BytesIO()
    np.save(stream, numbers)
    return stream.getvalue()


def _forms(marker: bytes) -> tuple[bytes, ...]:
    """Return how a marker may be written: as it is, backwards, in hexadecimal digits."""
    return marker, marker[::-1], marker.hex().encode()


def _memory(pid: int) -> Iterator[bytes]:
    """Yield the readable memory of a process in pieces, none of which cuts a marker in two."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, permissions, *_ = line.split()
            if not permissions.startswith("r") or line.endswith("[vvar]"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for position in range(start, end, _PIECE_BYTES):
                try:
                    memory.seek(position)
                    yield memory.read(min(end - position, _PIECE_BYTES + 4096))
                except (OSError, OverflowError, ValueError):
                    break


def _files(folders: Iterable[Path], changed_after: float) -> Iterator[Path]:
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                path = Path(place) / name
                try:
                    status = path.lstat()
                except OSError:
                    continue
                if (
                    stat.S_ISREG(status.st_mode)
                    and status.st_mtime >= changed_after
                    and status.st_size <= _MAX_FILE_BYTES
                ):
                    yield path
