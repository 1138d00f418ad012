"""What all proxies share: how they are shown, and that they stay where they are."""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NoReturn

from enclave_kernel.session.user_functions import UserFunctionError
from enclave_protocol.package_label import Label
from enclave_protocol.plain_text import plain_text

__all__ = ["StaysInVault", "outward", "shown_name", "with_package_frame"]


def shown_name(label: Label) -> str:
    """Return how a package is shown wherever it is shown: `<encrypted NAME VERSION>`."""
    return f"<encrypted {plain_text(f'{label.package.name} {label.package.version}')}>"


def outward(error: BaseException) -> BaseException:
    """Return what the user sees of an error: the package as one frame, or the user's own frames.

    To be raised outside of the `except` that caught it: then its context is the user's, too.
    """
    if isinstance(error, UserFunctionError):
        return error.original
    # The frames below are this project's, and so is what it was handling.
    error.__suppress_context__ = True
    return error.with_traceback(None)


class StaysInVault:
    """What no proxy does: be pickled or copied."""

    __slots__ = ()

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} stays in its vault: it cannot be pickled or copied; "
            "save what its functions return instead"
        )

    def __reduce__(self) -> NoReturn:
        self.__reduce_ex__(0)


def with_package_frame(
    function: Callable[..., Any], label: Label, name: str, qualified: str
) -> FunctionType:
    """Return `function` as tracebacks shall show it: `<encrypted NAME VERSION>` is its file."""
    if not isinstance(function, FunctionType):
        raise TypeError(f"{function!r} is no function")
    code: CodeType = function.__code__.replace(
        co_filename=shown_name(label), co_name=name, co_qualname=qualified, co_firstlineno=1
    )
    dressed = FunctionType(
        code, function.__globals__, name, function.__defaults__, function.__closure__
    )
    dressed.__qualname__ = qualified
    dressed.__kwdefaults__ = function.__kwdefaults__
    return dressed
