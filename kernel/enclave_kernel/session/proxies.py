"""What a notebook sees of an encrypted package: one object with its functions and classes.

Made from the label alone, which anyone may read: names, signatures and docs as the owner wrote
them. Convenience, not protection: the vault checks every request again.
"""

import inspect
import weakref
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Self

from enclave_kernel.session.call_interrupt import CallInterrupt
from enclave_kernel.session.call_thread import in_thread
from enclave_kernel.session.iterators import (
    EncryptedIterator,
    async_iterator_class,
    iterator_class,
)
from enclave_kernel.session.package_failures import EncryptedPackageError
from enclave_kernel.session.proxy_parts import (
    StaysInVault,
    outward,
    shown_name,
    with_package_frame,
)
from enclave_kernel.session.user_functions import take_functions
from enclave_kernel.session.vault_client import ITERATOR, VaultClient
from enclave_protocol.manifest import CONTEXT_METHODS
from enclave_protocol.package_label import Label
from enclave_protocol.plain_text import plain_text
from enclave_protocol.signature import is_async, parse_signature
from enclave_protocol.value_codec import Handle

__all__ = ["EncryptedObject", "EncryptedPackage", "package_proxy"]

_Resolve = Callable[[Handle], object]
_Positional = tuple[Any, ...]
_Named = dict[str, Any]
_MakeCall = Callable[[_Positional, _Named, CallInterrupt | None], Any]
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _doc(label: Label, *names: str) -> str | None:
    """Return the doc of the first of `names` that has one, lines kept."""
    for name in names:
        if name in label.docs:
            return plain_text(label.docs[name], limit=None, keep_lines=True)
    return None


class _Undisclosed:
    """A default that the owner does not show."""

    def __repr__(self) -> str:
        return "..."


_UNDISCLOSED = _Undisclosed()


class EncryptedObject(StaysInVault):
    """An object of an exported class; the object itself is in the vault.

    At the end of a `with` block the vault forgets it, unless its class says what happens then.
    """

    __slots__ = ("__weakref__", "_client", "_handle", "_release")

    _client: VaultClient
    _handle: int
    _release: Callable[[], object]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self._release()

    def __repr__(self) -> str:
        return f"{self._client.package.removesuffix('>')}: {type(self).__name__} object>"


class EncryptedPackage(StaysInVault):
    """The name that `%load_encrypted` binds. Its attributes are the package's exports."""

    __slots__ = ("_client", "_label", "_members")

    def __init__(self, client: VaultClient, label: Label, members: dict[str, Any]) -> None:
        self._client = client
        self._label = label
        self._members = members

    def __getattr__(self, name: str) -> Any:
        # Only for names that are no slots. A table: looking around never calls the vault.
        if name.startswith("__") or name in ("_client", "_label", "_members"):
            raise AttributeError(name)
        try:
            return self._members[name]
        except KeyError:
            exports = ", ".join(sorted(self._members)) or "nothing"
            raise AttributeError(
                f"{self!r} exports no {name!r}; it exports {exports}", name=name, obj=self
            ) from None

    def __dir__(self) -> list[str]:
        return sorted(self._members)

    def __repr__(self) -> str:
        return shown_name(self._label)

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # per package, not per class
        """The package's description and exports, as its owner wrote them."""
        description = self._label.package.description
        lines = [plain_text(description, limit=None, keep_lines=True) or repr(self), ""]
        for name, member in sorted(self._members.items()):
            lines.append(f"{name}{inspect.signature(member)}")
            if member.__doc__:
                lines.append(f"    {member.__doc__}")
        return "\n".join(lines)


def package_proxy(client: VaultClient, label: Label) -> EncryptedPackage:
    """Return the object that stands for a loaded package.

    Args:
        client: The connection to its vault.
        label: Its label, with checked exports.

    Raises:
        PackageError: A signature in the label does not parse.
    """
    members: dict[str, Any] = {}
    classes: dict[str, type[EncryptedObject]] = {}

    iterators = iterator_class(client, label)

    def resolve(handle: Handle) -> EncryptedObject | EncryptedIterator:
        if handle.class_name == ITERATOR:
            return iterators(handle.number)
        cls = classes.get(handle.class_name)
        if cls is None:
            raise EncryptedPackageError(f"{client.package} returned an object of no known class")
        return _adopt(object.__new__(cls), client, handle)

    for name in label.exports.classes:
        classes[name] = members[name] = _class_proxy(client, label, name, resolve)
    for name, text in label.exports.functions.items():
        members[name] = _function_proxy(client, label, name, text, resolve)
    return EncryptedPackage(client, label, members)


def _adopt(instance: EncryptedObject, client: VaultClient, handle: Handle) -> EncryptedObject:
    instance._client = client
    instance._handle = handle.number
    # Not at exit: the vault goes with the notebook.
    finalizer = weakref.finalize(instance, client.release, handle.number)
    finalizer.atexit = False
    instance._release = finalizer
    return instance


def _function_proxy(
    client: VaultClient,
    label: Label,
    name: str,
    text: str,
    resolve: _Resolve,
) -> FunctionType:
    _, signature = parse_signature(text)
    names = _positional_names(signature)

    def make(args: _Positional, kwargs: _Named, watch: CallInterrupt | None) -> Any:
        args, kwargs, functions = take_functions(names, label.policy.callbacks, args, kwargs)
        return client.call(name, (args, kwargs), names, resolve, watch, functions)

    kind = _kind(label, text, name)
    return _dress(_caller(client, label, kind, make), label, name, name, signature)


def _kind(label: Label, text: str, name: str) -> str:
    """Return how a call is used: "sync", "async", or "iter" for what `async for` takes."""
    if not is_async(text):
        return "sync"
    return "iter" if label.exports.returned_by(name) == "iter" else "async"


def _caller(client: VaultClient, label: Label, kind: str, make: _MakeCall) -> Callable[..., Any]:
    """Return a function that makes the call as its signature says it is used."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(args, kwargs, None)
        except BaseException as error:
            failure = outward(error)
        try:
            raise failure
        finally:
            del failure

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        watch = client.new_watch()
        try:
            return await in_thread(lambda: make(args, kwargs, watch), watch.press)
        except BaseException as error:
            failure = outward(error)
        try:
            raise failure
        finally:
            del failure

    iterators = async_iterator_class(client, label)

    def iterated(*args: Any, **kwargs: Any) -> Any:
        return iterators(lambda watch: make(args, kwargs, watch))

    kinds: dict[str, Callable[..., Any]] = {"sync": call, "async": awaited, "iter": iterated}
    return kinds[kind]


def _class_proxy(
    client: VaultClient,
    label: Label,
    name: str,
    resolve: _Resolve,
) -> type[EncryptedObject]:
    declared = label.exports.classes[name]
    namespace: dict[str, Any] = {
        "__slots__": (),
        "__doc__": _doc(label, name),
        "__module__": label.package.module,
        "__qualname__": name,
    }
    if declared.init:
        _, signature = parse_signature(declared.init)
        namespace["__signature__"] = _shown(signature)
    else:
        signature = inspect.Signature()
    names = _positional_names(signature)

    def new(cls: type[EncryptedObject], /, *args: Any, **kwargs: Any) -> EncryptedObject:
        try:
            args, kwargs, functions = take_functions(names, label.policy.callbacks, args, kwargs)
            handle = client.construct(name, (args, kwargs), names, functions)
            return _adopt(object.__new__(cls), client, handle)
        except BaseException as error:
            failure = outward(error)
        try:
            raise failure
        finally:
            del failure

    # What was made is complete; nothing is left for __init__ but to take the arguments.
    namespace["__new__"] = with_package_frame(new, label, name, f"{name}")
    namespace["__init__"] = lambda _self, /, *_args, **_kwargs: None
    for text in declared.methods:
        if text in CONTEXT_METHODS:
            continue
        method, _ = parse_signature(text)
        namespace[method] = _method_proxy(client, label, name, text, resolve)
    if set(CONTEXT_METHODS) <= set(declared.methods):
        namespace.update(_context_methods(client, label, name))
    for attribute in declared.attributes:
        namespace[attribute] = _attribute_proxy(client, label, name, attribute)
    return type(name, (EncryptedObject,), namespace)


def _method_proxy(
    client: VaultClient,
    label: Label,
    class_name: str,
    text: str,
    resolve: _Resolve,
) -> FunctionType:
    method, signature = parse_signature(text)
    names = _positional_names(signature)

    def make(args: _Positional, kwargs: _Named, watch: CallInterrupt | None) -> Any:
        # The object itself, which lives as long as `args`: a handle alone would not hold it.
        if not args or not isinstance(args[0], EncryptedObject):
            raise TypeError(f"{method}() takes an object of {class_name} first")
        handle = args[0]._handle
        left, kwargs, functions = take_functions(names, label.policy.callbacks, args[1:], kwargs)
        return client.call_method(handle, method, (left, kwargs), names, resolve, watch, functions)

    parameters = list(signature.parameters.values())
    # Two of one name are refused; a first parameter of positional-only ones must be one, too.
    own = "_self" if "self" in signature.parameters else "self"
    only = any(parameter.kind is inspect.Parameter.POSITIONAL_ONLY for parameter in parameters)
    first = inspect.Parameter(own, _POSITIONAL[0] if only else _POSITIONAL[1])
    whole = inspect.Signature([first, *parameters])
    qualified = f"{class_name}.{method}"
    kind = _kind(label, text, qualified)
    return _dress(_caller(client, label, kind, make), label, method, qualified, whole)


def _context_methods(client: VaultClient, label: Label, class_name: str) -> dict[str, Any]:
    """Return what `with` calls on an object of a class that declares it.

    The vault learns whether the block raised, and nothing about it; what it answers changes
    nothing about the exception.
    """

    def enter(self: EncryptedObject) -> EncryptedObject:
        try:
            client.call_method(self._handle, "__enter__", ((), {}), ())
            return self
        except BaseException as error:
            raise error.with_traceback(None) from None

    def leave(self: EncryptedObject, kind: object, _error: object, _traceback: object) -> None:
        failure: BaseException | None = None
        try:
            client.call_method(self._handle, "__exit__", ((kind is not None,), {}), ())
        except BaseException as error:
            failure = error.with_traceback(None)
        if failure is not None:
            # Not from None: the block's own exception stays to be seen, as the context of this one.
            raise failure

    return {
        name: with_package_frame(code, label, name, f"{class_name}.{name}")
        for name, code in (("__enter__", enter), ("__exit__", leave))
    }


def _attribute_proxy(client: VaultClient, label: Label, class_name: str, name: str) -> property:
    def get(self: EncryptedObject) -> Any:
        try:
            return client.get_attribute(self._handle, name)
        except BaseException as error:
            raise error.with_traceback(None) from None

    qualified = f"{class_name}.{name}"
    getter = with_package_frame(get, label, name, qualified)
    # jedi completes what comes behind a property by reading it, unless it says what it returns:
    # pressing Tab must ask the vault for nothing (THREATS I-19). What it is nobody knows before.
    getter.__annotations__ = {"return": object}
    return property(getter, doc=_doc(label, qualified))


def _positional_names(signature: inspect.Signature) -> Sequence[str]:
    return [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in _POSITIONAL
    ]


def _shown(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature with `...` for what is not disclosed, instead of `Ellipsis`."""
    return signature.replace(
        parameters=[
            parameter.replace(default=_UNDISCLOSED) if parameter.default is ... else parameter
            for parameter in signature.parameters.values()
        ]
    )


def _dress(
    function: Callable[..., Any],
    label: Label,
    name: str,
    qualified: str,
    signature: inspect.Signature,
) -> FunctionType:
    dressed = with_package_frame(function, label, name, qualified)
    dressed.__doc__ = _doc(label, qualified, name)
    dressed.__module__ = label.package.module
    dressed.__signature__ = _shown(signature)  # type: ignore[attr-defined]
    return dressed
