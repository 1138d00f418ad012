"""The table of all kinds of values that have a file of their own, and when each is looked at.

A library is never imported to encode: what is not imported has made no value. Decoding imports it
when the first of its values arrives.

Source: docs/spec/vault_calls.md, "Values".
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from enclave_protocol import (
    value_arrow,
    value_figure,
    value_image,
    value_pandas,
    value_plain,
    value_sparse,
    value_time,
    value_torch,
)
from enclave_protocol.value_nodes import ValueRefusedError, module_of

__all__ = ["FAMILY_DECODERS", "family_encoder"]

_Encode = Callable[[Any, Any, int], object]
_Decode = Callable[[Any, Any, int], Any]

# By the first part of a type's module: what gives the encoders of the library of that name.
_LIBRARIES: Final[Mapping[str, Callable[[Any], Mapping[type, _Encode]]]] = {
    "pandas": value_pandas.encoders_of,
    "pyarrow": value_arrow.encoders_of,
    "scipy": value_sparse.encoders_of,
    "PIL": value_image.encoders_of,
    "matplotlib": value_figure.encoders_of,
    "torch": value_torch.encoders_of,
}
_known: dict[type, _Encode] = {**value_plain.ENCODERS, **value_time.ENCODERS}


def family_encoder(kind: type) -> _Encode | None:
    """Return what encodes values of exactly this type; None when nothing does."""
    encode = _known.get(kind)
    if encode is None:
        root = module_of(kind).partition(".")[0]
        encoders_of = _LIBRARIES.get(root)
        library = sys.modules.get(root)
        if encoders_of is None or library is None:
            return None
        encode = encoders_of(library).get(kind)
        if encode is None and root == "PIL":
            encode = value_image.encode_file_image(kind)
        if encode is not None:
            encode = _known[kind] = _guarded_encode(root, encode)
    return encode


def _guarded_encode(library: str, encode: _Encode) -> _Encode:
    """Return `encode` with every error as the codec's: a library raises what it likes."""

    def guarded(encoder: Any, value: Any, depth: int) -> object:
        try:
            return encode(encoder, value, depth)
        except ValueRefusedError:
            raise
        except Exception as error:
            raise ValueRefusedError(
                f"a {type(value).__name__} that {library} cannot read ({type(error).__name__})"
            ) from None

    return guarded


def _guarded(library: str, decoders: Mapping[tuple[int, int], _Decode]) -> dict[Any, _Decode]:
    """Return `decoders` with every error as the codec's: a library raises what it likes."""

    def guard(decode: _Decode) -> _Decode:
        def guarded(decoder: Any, node: Any, depth: int) -> Any:
            try:
                return decode(decoder, node, depth)
            except ValueRefusedError:
                raise
            except ImportError:
                raise ValueRefusedError(
                    f"a value of {library} came, and {library} is not installed here"
                ) from None
            except Exception:
                raise ValueRefusedError(f"a value of {library} came malformed") from None

        return guarded

    return {key: guard(decode) for key, decode in decoders.items()}


FAMILY_DECODERS: Final[Mapping[tuple[int, int], _Decode]] = {
    **value_plain.DECODERS,
    **value_time.DECODERS,
    **_guarded("pandas", value_pandas.DECODERS),
    **_guarded("pyarrow", value_arrow.DECODERS),
    **_guarded("scipy", value_sparse.DECODERS),
    **_guarded("PIL", value_image.DECODERS),
    **_guarded("torch", value_torch.DECODERS),
}
