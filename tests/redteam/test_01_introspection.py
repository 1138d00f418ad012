"""THREATS E.1: a user who looks at, into and around a proxy. Adversary U, in a real notebook."""

from typing import Any

import msgspec
import pytest

from enclave_protocol import vault_messages as vm
from enclave_protocol.value_codec import decode_value, encode_arguments
from tests.redteam.arena import Arena
from tests.redteam.conftest import needs_root
from tests.redteam.hostile_notebook import HostileNotebook

_NOTHING = encode_arguments((), {}).header


def quiet(notebook: HostileNotebook, code: str) -> str:
    """Run a cell; whatever it shows must hold no marker. Returns what it showed."""
    shown = notebook.cell(code)
    assert notebook.clean(shown), shown.text
    return f"{shown.text}\n{shown.error}"


def test_the_user_can_use_the_package(notebook: HostileNotebook) -> None:
    """Without this, nothing below means anything."""
    assert notebook.value("m.predict(np.ones(3)).tolist()") == [2.0, 2.0, 2.0]
    assert notebook.value("(m.best().bias, m.Model(2.0).predict([1.0]).tolist())") == (6.0, [4.0])


def test_i01_question_marks(notebook: HostileNotebook) -> None:
    for name in ("m", "m.predict", "m.Model", "m.Model.predict", "m.best()"):
        for mark in ("?", "??"):
            assert "Traceback" not in quiet(notebook, f"{name}{mark}")
    for detail in (0, 1, 2):
        request = notebook.client.inspect("m.predict", detail_level=detail)
        answer = notebook.ask(request)
        text = str(answer.get("data", {}))
        assert not notebook.marked.found_in_bytes(text)
        if detail == 0:
            assert "Public: scale some numbers." in text


def test_i02_inspect(notebook: HostileNotebook) -> None:
    code = """
import inspect
for thing in (m, m.predict, m.Model, m.Model.predict, m.best(), m.best().predict):
    for look in (inspect.getsource, inspect.getsourcefile, inspect.getmodule, inspect.getcomments,
                 inspect.getclosurevars, inspect.getdoc, inspect.getmembers, inspect.signature,
                 inspect.getmembers_static, inspect.getfile, inspect.getsourcelines):
        try:
            print(look.__name__, look(thing))
        except Exception as error:
            print(look.__name__, type(error).__name__, error)
"""
    assert "getsource OSError" in quiet(notebook, code)


def test_i03_bytecode(notebook: HostileNotebook) -> None:
    code = """
import dis
for function in (m.predict, m.Model.predict, m.Model.__new__, type(m).__getattr__):
    dis.dis(function)
    code = function.__code__
    print(code.co_consts, code.co_names, code.co_filename, code.co_varnames, code.co_code.hex())
"""
    assert "<encrypted marked 1.0>" in quiet(notebook, code)


def test_i04_globals_and_closures(notebook: HostileNotebook) -> None:
    code = """
def walk(function, depth=0):
    print(sorted(function.__globals__), function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        print(repr(cell.cell_contents))
        if hasattr(cell.cell_contents, "__closure__") and depth < 4:
            walk(cell.cell_contents, depth + 1)
for function in (m.predict, m.Model.predict, m.Model.__new__):
    walk(function)
print("{0.predict.__globals__} {0.predict.__closure__}".format(m))
"""
    quiet(notebook, code)


def test_i05_every_object(notebook: HostileNotebook) -> None:
    code = f"""
import gc
needle = {notebook.marked.prefix[:8].decode()!r} + {notebook.marked.prefix[8:].decode()!r}
control, found = "control-" + needle, []
for thing in gc.get_objects():
    if isinstance(thing, dict):
        for key, value in list(thing.items()):
            found += [text for text in (key, value) if type(text) is str and needle in text]
own = [control, needle]
print(len([text for text in found if text not in own]), control in found)
"""
    shown = notebook.cell(code)
    # The prefix alone, which this cell brought along, marks the control; nothing else is there.
    assert shown.text.strip() == "0 True", shown.text


def test_i06_dict_dir_slots(notebook: HostileNotebook) -> None:
    exports = ["Model", "Other", "best", "fail", "leak", "nap", "noisy", "predict", "run"]
    assert notebook.value("dir(m)") == [*exports, "vault_number"]
    for code in ("vars(m)", "vars(m.best())", "m.__dict__", "m.best().__dict__"):
        assert notebook.cell(code).error in ("TypeError", "AttributeError")
    handle = notebook.value("m.best()._handle")
    assert type(handle) is int and handle > 2**30
    quiet(notebook, "print(m.__slots__, m._label, m._members, m._client, dir(m.best()))")


def test_i07_undeclared_attributes(notebook: HostileNotebook) -> None:
    notebook.cell("kept = m.best()")
    names = ["weights", "_p", "a_", "secret", "__getstate_x__", "clone2", "BLOB", "CONSTANT"]
    for name in names:
        assert notebook.cell(f"kept.{name}").error == "AttributeError"
        assert notebook.cell(f"m.{name}").error == "AttributeError"
        forged = f"m._client.get_attribute(kept._handle, {name!r})"
        shown = notebook.cell(forged)
        assert shown.error == "AttributeError" and notebook.clean(shown)


@pytest.mark.parametrize("kind", ["Call", "Construct", "CallMethod", "GetAttribute"])
def test_i08_forged_requests(modern: Arena, kind: str) -> None:
    """A notebook that writes its own frames: only keys of the tables, only well-formed messages."""
    channel = modern.loaded.client._channel
    (handle, _) = _ask(channel, vm.Construct(9_000_001, "Model", _NOTHING))
    names = ["weights", "__dict__", "predict.__globals__", "marked:CONSTANT", "CONSTANT", "json"]
    names += ["Model.weights", "os.system", "E_", "__class__", "__init__", "__reduce_ex__", "run\0"]
    for number, name in enumerate(names):
        made: Any = {
            "Call": lambda n, name=name: vm.Call(n, name, _NOTHING),
            "Construct": lambda n, name=name: vm.Construct(n, name, _NOTHING),
            "CallMethod": lambda n, name=name: vm.CallMethod(n, handle, name, _NOTHING),
            "GetAttribute": lambda n, name=name: vm.GetAttribute(n, handle, name),
        }[kind]
        reply = _ask(channel, made(9_000_100 + number))
        assert isinstance(reply, vm.Refused) and reply.kind == "AttributeError"
        assert not modern.marked.found_in_bytes(reply.message)
    keywords = msgspec.msgpack.encode([[], ["__class__"], [1]])
    reply = _ask(channel, vm.Call(9_000_200, "predict", keywords))
    assert isinstance(reply, vm.Refused) and reply.kind == "TypeError"


@pytest.mark.parametrize(
    "message",
    [
        *([], [3], [3, 1], [3, 1, ["predict"], b""], [3, 1, "predict", b"", 1], [3, -1, "p", b""]),
        *(
            [99, 1, "x", b""],
            {"op": "call"},
            None,
            "call",
            [3, 2**63, "p", b""],
            [3, 1.5, "p", b""],
        ),
        *([1], [2], [23, 1, b""]),
    ],
    ids=str,
)
def test_i08_malformed_requests(modern: Arena, message: Any) -> None:
    """No message: the vault closes the connection, and tells nothing."""
    with modern.another_vault() as place:
        sock = place.package._client._channel._sock
        payload = msgspec.msgpack.encode(message)
        sock.sendall(len(payload).to_bytes(4, "big") + bytes(4) + payload)
        left = b""
        while piece := sock.recv(65536):
            left += piece
        assert not modern.marked.found_in_bytes(left)
    assert modern.vault.package.predict([1.0])[0] == 2.0


def _ask(channel: Any, message: Any) -> Any:
    channel.send(message)
    payload, contents = channel.receive()
    reply = vm.decode_vault_message(payload)
    if isinstance(reply, vm.Result):
        return decode_value(reply.value, contents, resolve=lambda handle: handle)
    return reply


def test_i09_handles_guessed_and_reused(modern: Arena) -> None:
    channel = modern.loaded.client._channel
    model, _ = _ask(channel, vm.Construct(9_100_001, "Model", _NOTHING))
    other, _ = _ask(channel, vm.Construct(9_100_002, "Other", _NOTHING))
    guesses = [*range(200), model ^ 1, 2**60, 2**62 - 1]
    for number, guess in enumerate(guesses):
        reply = _ask(channel, vm.CallMethod(9_100_010 + number, guess, "clone", _NOTHING))
        assert isinstance(reply, vm.Refused) and reply.kind == "ReferenceError"
    # Another class's method or attribute with a good handle.
    for message in (
        vm.CallMethod(9_100_900, other, "clone", _NOTHING),
        vm.GetAttribute(9_100_901, other, "bias"),
    ):
        reply = _ask(channel, message)
        assert isinstance(reply, vm.Refused) and reply.kind == "AttributeError"
    # The handle of another connection's object.
    with modern.another_vault() as place:
        foreign = place.package.Model()._handle
        reply = _ask(channel, vm.CallMethod(9_100_902, foreign, "clone", _NOTHING))
        assert isinstance(reply, vm.Refused) and reply.kind == "ReferenceError"
    channel.send(vm.Release((model,)))
    reply = _ask(channel, vm.CallMethod(9_100_903, model, "clone", _NOTHING))
    assert isinstance(reply, vm.Refused) and reply.kind == "ReferenceError"


@pytest.mark.parametrize("thing", ["m", "m.best()"])
def test_i10_pickle_and_copy(notebook: HostileNotebook, thing: str) -> None:
    for call in (
        *("pickle.dumps({})", "copy.copy({})", "copy.deepcopy({})", "{}.__reduce__()"),
        *("{}.__reduce_ex__(4)", "pickle.dumps([{}], 5)"),
    ):
        shown = notebook.cell("import copy, pickle\n" + call.format(thing))
        assert shown.error == "TypeError" and notebook.clean(shown)
    # Past the proxy's refusal: what can be had is a number and a connection.
    quiet(notebook, f"object.__reduce_ex__({thing}, 2)")


def test_i11_another_class(notebook: HostileNotebook) -> None:
    code = """
model, other = m.best(), m.best()
for make in (lambda: setattr(model, "__class__", type("X", (), {"secret": 1})),
             lambda: setattr(model, "__class__", m.Other), lambda: m.Model.clone(m.Other()),
             lambda: setattr(other, "_handle", 7), lambda: other.clone(), lambda: model.clone(),
             lambda: m.Model.bias.fget(m.Other())):
    try:
        print(make())
    except Exception as error:
        print(type(error).__name__, error)
"""
    shown = quiet(notebook, code)
    assert "ReferenceError" in shown and "AttributeError" in shown


def test_i12_a_patched_client(notebook: HostileNotebook) -> None:
    code = """
import sys
from enclave_kernel.session import proxies, vault_client
from enclave_protocol import value_codec, value_decoder
seen = []
original = vault_client.decode_value
vault_client.decode_value = lambda *a, **k: (seen.append(a), original(*a, **k))[1]
sys.settrace(lambda frame, event, arg: seen.append((frame.f_code, dict(frame.f_locals))))
sys.addaudithook(lambda event, args: seen.append((event, args)) if "import" in event else None)
try:
    for kind in ("runtime", "cause", "unicode"):
        try:
            m.fail(kind)
        except Exception as error:
            seen.append(error)
    m.predict([1.0])
finally:
    sys.settrace(None)
    vault_client.decode_value = original
print(len(seen), repr(seen)[:200_000])
"""
    quiet(notebook, code)


def test_i13_finalizers_and_freed_objects(notebook: HostileNotebook) -> None:
    code = """
import gc, weakref
model = m.best(); handle = model._handle
weakref.finalize(model, print, "gone")
del model; gc.collect()
m._client.release(handle); m._client.release(handle); m._client.release(12345)
for _ in range(2):
    try:
        print(m._client.call_method(handle, "predict", (([1.0],), {}), ["x"]))
    except ReferenceError as error:
        print("ReferenceError")
print(m.best().bias)
"""
    text = quiet(notebook, code)
    assert text.count("ReferenceError") == 2 and "6.0" in text


def test_i14_fields_of_the_class(notebook: HostileNotebook) -> None:
    for code in (
        *("__import__('dataclasses').fields(m.Model)", "m.Model.model_json_schema()"),
        *("m.Model.__dataclass_fields__", "m.Model.__wrapped__"),
    ):
        shown = notebook.cell(code)
        assert shown.error in ("AttributeError", "TypeError") and notebook.clean(shown)
    quiet(notebook, "print(m.Model.__annotations__ if hasattr(m.Model, '__annotations__') else {})")
    quiet(notebook, "print(m.Model.__mro__, vars(m.Model), m.Model.__bases__)")


def test_i15_defaults_and_annotations(notebook: HostileNotebook) -> None:
    signature = notebook.value("str(__import__('inspect').signature(m.predict))")
    assert signature == "(x, scale=..., *, rows=2)"
    quiet(
        notebook, "print(m.predict.__annotations__, m.predict.__defaults__, m.Model.__signature__)"
    )


def test_i16_docstrings(notebook: HostileNotebook) -> None:
    code = """
import pydoc
for thing in (m, m.predict, m.Model, m.Model.predict, m.best, type(m)):
    print(pydoc.render_doc(thing), thing.__doc__)
help(m.Model)
"""
    text = quiet(notebook, code)
    assert "Public: scale some numbers." in text and "What the owner says in public." in text


def test_i17_imports(notebook: HostileNotebook) -> None:
    code = """
import importlib.metadata, importlib.resources, importlib.util, pkgutil, sys
print([name for name in sys.modules if name.partition(".")[0] == "marked"])
print([module.name for module in pkgutil.iter_modules() if module.name == "marked"])
for look in (__import__, importlib.resources.files, importlib.metadata.files,
             importlib.util.find_spec):
    try:
        print("found", look("marked"))
    except Exception as error:
        print(type(error).__name__)
"""
    text = quiet(notebook, code)
    assert text.splitlines()[:2] == ["[]", "[]"] and text.count("found") == text.count("found None")


def test_i18_line_caches_and_bytecode_files(notebook: HostileNotebook) -> None:
    code = """
import linecache, pathlib, sys
name = m.predict.__code__.co_filename
print(linecache.getlines("<encrypted marked 1.0>"), linecache.getlines(name))
print([name for name in linecache.cache if "marked" in name])
print(m.predict.__globals__["__loader__"].get_source("enclave_kernel.session.proxies"))
"""
    assert quiet(notebook, code).startswith("[] []\n[]\n")
    folders = [notebook.folder, notebook.home.root]
    assert notebook.marked.found_in_files(folders) == set()


def test_i19_completion(notebook: HostileNotebook) -> None:
    for text in ("m.", "m.best().", "m.Model.", "m.predict(", "m._"):
        answer = notebook.ask(notebook.client.complete(text, len(text)))
        assert not notebook.marked.found_in_bytes(str(answer))
    before = notebook.value("m._client._last_request")
    notebook.cell("model = m.best()")
    for text in ("model.b", "model.predict.", "print(model.bias", "model."):
        notebook.ask(notebook.client.complete(text, len(text)))
    # The call asked the vault; completing names did not.
    assert notebook.value("m._client._last_request") == before + 1


def test_i19_completion_behind_an_attribute(notebook: HostileNotebook) -> None:
    """With jedi, which reads a property to see what comes behind it, and without."""
    notebook.cell("model = m.best(); many = [model]; ip = get_ipython()")
    try:
        for jedi in (True, False):
            notebook.cell(f"ip.Completer.use_jedi = {jedi}")
            assert notebook.value("ip.Completer.use_jedi") is jedi
            before = notebook.value("m._client._last_request")
            for text in (
                *("model.bias.", "many[0].bias.", "model.bias[0].", "x = model.bias\nx."),
                *("m.best().bias.", "m.predict([1.0]).", "model.clone().bias.", "f(model.bias."),
            ):
                notebook.ask(notebook.client.complete(text, len(text)))
                for detail in (0, 1):
                    notebook.ask(notebook.client.inspect(text.rstrip("."), None, detail))
            assert notebook.value("m._client._last_request") == before
            # The control: somebody who does read it asks the vault.
            assert notebook.value("model.bias") == 6.0
            assert notebook.value("m._client._last_request") == before + 1
    finally:
        notebook.cell("ip.Completer.use_jedi = True")


def test_i20_type_names(notebook: HostileNotebook) -> None:
    code = """
for thing in (m, m.best(), m.Model, m.predict):
    kind = type(thing)
    print(kind.__module__, kind.__qualname__, getattr(thing, "__module__", ""), repr(thing))
"""
    assert "<encrypted marked 1.0: Model object>" in quiet(notebook, code)


def test_i21_representations(notebook: HostileNotebook) -> None:
    for code in ("m.best()", "[m.best()]", "m", "print(m.best(), str(m), f'{m.best()!r:>60}')"):
        assert "<encrypted marked 1.0" in quiet(notebook, code)
    shown = notebook.cell("from IPython.display import display\ndisplay(m.best(), m)")
    assert shown.mime_types == {"text/plain"}
    assert notebook.cell("m.best()._repr_html_()").error == "AttributeError"


@needs_root
def test_i22_the_users_own_address_space(notebook: HostileNotebook) -> None:
    """All of it, after all of the above: with the vault as the positive control."""
    assert notebook.marked.found_in_process(notebook.vault_pid) == notebook.marked.in_vault
    assert notebook.marked.found_in_process(notebook.pid) == set()
