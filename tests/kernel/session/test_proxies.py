"""What a notebook sees of a package: what the label says, and nothing else."""

import copy
import inspect
import pickle
import pydoc
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from enclave_kernel.session.proxies import package_proxy
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed, spy_package


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with VaultLink() as link:
        yield load_sealed(link, spy_package(), tmp_path_factory.mktemp("spy")).proxy


def test_it_looks_like_a_module(spy: Any) -> None:
    assert repr(spy) == str(spy) == "<encrypted spy 1.0>"
    assert dir(spy) == sorted(
        ["Box", "Sealed", "run", "echo", "empty", "fail", "opts", "make", "wrong", "nothing"]
    )
    for name in ("undeclared", "SECRET", "__wrapped__", "_repr_html_", "shape"):
        with pytest.raises(AttributeError):
            getattr(spy, name)
    with pytest.raises(AttributeError, match="exports no 'undeclared'; it exports Box, Sealed"):
        spy.undeclared  # noqa: B018 (the access is the test)
    with pytest.raises(AttributeError):
        spy.new_name = 1


def test_signatures_and_docs_are_the_labels(spy: Any) -> None:
    assert str(inspect.signature(spy.opts)) == "(a, b=2, *, c=..., d)"
    assert str(inspect.signature(spy.Box)) == "(content=None)"
    assert str(inspect.signature(spy.Box.get)) == "(self)"
    assert str(inspect.signature(spy.Box().get)) == "()"
    assert spy.run.__doc__ == "Run code in the vault." and spy.echo.__doc__ is None
    assert spy.Box.get.__doc__ == "What is inside."
    assert (spy.run.__name__, spy.run.__module__, spy.Box.__module__) == ("run", "spy", "spy")
    assert "opts(a, b=2, *, c=..., d)" in spy.__doc__


def test_docs_and_names_of_an_unchecked_label_are_plain(spy: Any) -> None:
    hostile = "\x1b]52;c;x\x07\x1b[2J\r\u202e"
    label = spy._label
    package = msgspec.structs.replace(
        label.package, name=f"spy{hostile}", description=f"About{hostile}\nit."
    )
    docs = dict.fromkeys(("run", "Box", "Box.get", "Box.content"), f"Doc{hostile}\nof it.")
    proxy: Any = package_proxy(
        spy._client, msgspec.structs.replace(label, package=package, docs=docs)
    )
    shown = [repr(proxy), proxy.__doc__, proxy.run.__code__.co_filename]
    shown += [item.__doc__ for item in (proxy.run, proxy.Box, proxy.Box.get, proxy.Box.content)]
    for text in shown:
        assert text.replace("\n", "").isprintable()
        assert "]52;c;x" in text
    assert proxy.run.__doc__.splitlines()[1] == "of it."


def test_nothing_of_the_package_is_behind_it(spy: Any) -> None:
    box = spy.Box()
    shown = [pydoc.render_doc(thing) for thing in (spy, spy.run, spy.Box, box)]
    for function in (spy.run, spy.Box.get):
        code = function.__code__
        shown += [repr(code.co_consts), repr(code.co_names), repr(function.__closure__)]
        with pytest.raises((OSError, TypeError)):
            inspect.getsource(function)
    with pytest.raises(TypeError):
        vars(box)
    for name in ("undeclared", "hidden", "_p", "__wrapped__"):
        with pytest.raises(AttributeError):
            getattr(box, name)
    assert CANARY not in "".join(shown)


@pytest.mark.parametrize("what", ["package", "object"])
def test_it_cannot_be_pickled_or_copied(spy: Any, what: str) -> None:
    thing = spy if what == "package" else spy.Box()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy, lambda item: item.__reduce__()):
        with pytest.raises(TypeError, match="stays in its vault"):
            attempt(thing)


def test_objects_have_a_constant_repr_and_their_class(spy: Any) -> None:
    box = spy.make()
    assert repr(box) == "<encrypted spy 1.0: Box object>"
    assert isinstance(box, spy.Box) and not isinstance(box, spy.Sealed)
    assert spy.Box(content=[1]).get() == [1]
    with pytest.raises(AttributeError):
        box.content = 1


def test_a_traceback_shows_the_package_as_one_frame(spy: Any) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: spy.fail("ValueError", "x"), "fail"),
        (lambda: spy.echo(print), "echo"),
        (lambda: spy.Box(1, 2), "Box"),
    ]
    for call, name in calls:
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        frames = traceback.extract_tb(caught.value.__traceback__)
        assert [frame.filename for frame in frames[2:]] == ["<encrypted spy 1.0>"]
        assert frames[-1].name == name and not frames[-1].line
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
