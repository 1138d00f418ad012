import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.package_errors import PackageError
from enclave_protocol.signature import (
    MAX_SIGNATURE_CHARS,
    SignatureTextError,
    format_signature,
    is_async,
    parse_signature,
)

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii"), max_size=10) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text("abc", max_size=3), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    kinds = sorted(draw(st.lists(st.sampled_from(list(inspect._ParameterKind)), max_size=6)))
    parameters: list[inspect.Parameter] = []
    starred: set[object] = set()
    optional = False
    for index, kind in enumerate(kinds):
        default: object = inspect.Parameter.empty
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            if kind in starred:
                continue
            starred.add(kind)
        elif draw(st.booleans()) or (optional and kind is not inspect.Parameter.KEYWORD_ONLY):
            default = draw(st.just(...) | LITERALS)
            optional = True
        parameters.append(inspect.Parameter(f"p{index}", kind, default=default))
    return inspect.Signature(parameters)


@given(signatures())
def test_round_trip(signature: inspect.Signature) -> None:
    text = format_signature("score", signature)
    if len(text) <= MAX_SIGNATURE_CHARS:
        assert parse_signature(text) == ("score", signature)


def test_example_of_the_spec() -> None:
    name, signature = parse_signature("score(applicants, /, *rest, threshold=0.5, seed=..., **kw)")
    assert name == "score"
    assert signature.parameters["seed"].default is ...
    assert signature.bind(1, 2, threshold=3, other=4).arguments["rest"] == (2,)


def test_async_says_how_users_call_and_changes_nothing_else() -> None:
    assert parse_signature("async score(a=1)") == parse_signature("score(a=1)")
    assert is_async("async score(a=1)")
    assert not is_async("score(a=1)") and not is_async("asyncscore()")


BAD = [
    "async score", "async def score()", "async async score()", "async(a)", "async  (a)",
    "", "score", "score(", "score(a) -> int", "score(a: int)", "score(a=os)", "score(a=f())",
    "score(a, a)", "score(a=1, b)", "def score(a)", "class(a)", "score(a): pass", "score(a) # b)",
    "score(a):\n pass\ndef other()", "score(a=[...])", "score(a=1e999)", "score(a=-...)",
    "score(a=lambda: 0)", "score(a=(yield))", "score[T](a)", "x; y()", "f(a=" + "-" * 1900 + "1)",
    "f(" + "(" * 1900 + ")", "f(a=" + "9" * 1990 + ")" * 20, "f(a='\x1b')", "\udcff()",
    "f(a=f'{b}')",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text[:20]))
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(SignatureTextError) as caught:
        parse_signature(text)
    assert isinstance(caught.value, PackageError)
    assert "\n" not in str(caught.value)
