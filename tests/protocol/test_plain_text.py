import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_protocol.package_errors import PackageFormatError
from enclave_protocol.package_label import decode_label
from enclave_protocol.plain_text import MAX_LINE_CHARS, plain_text


@pytest.mark.parametrize(
    ("hostile", "plain"),
    [
        ("\x1b]52;c;cm0gLXJm\x07", " ]52;c;cm0gLXJm "),
        ("\x1b[2J\x9b2J", " [2J 2J"),
        ("a\r\nb\tc\x00\x7f", "a  b c  "),
        ("a\u202eb\u2066c\u200fd\ufeff", "a b c d "),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        ("\ud800", " "),
        ("Ünïcode ✓ 🦀 数", "Ünïcode ✓ 🦀 数"),
    ],
)
def test_what_does_not_print_is_a_space(hostile: str, plain: str) -> None:
    assert plain_text(hostile) == plain


def test_length() -> None:
    assert plain_text("x" * MAX_LINE_CHARS) == "x" * MAX_LINE_CHARS == "x" * 500
    assert plain_text("x" * 501) == "x" * 499 + "…"
    assert plain_text("x" * 501, limit=None) == "x" * 501
    assert plain_text("abcdef", limit=3) == "ab…"


def test_lines_are_kept_only_where_asked_for() -> None:
    assert plain_text("a\nb\x1b\rc", keep_lines=True) == "a\nb  c"


@given(st.text())
def test_always_one_printable_line(text: str) -> None:
    assert plain_text(text).isprintable()
    assert len(plain_text(text)) <= MAX_LINE_CHARS


def test_an_unknown_key_of_a_label_is_shown_plain() -> None:
    with pytest.raises(PackageFormatError) as caught:
        decode_label(b'{"\\u001b]52;c;x\\u0007\\n":1}')
    assert "]52;c;x" in str(caught.value) and str(caught.value).isprintable()
