"""What a package prints, made fit for a notebook."""

import pytest

from enclave_protocol.output_text import output_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode\n\tindented\n", "plain ünïcode\n\tindented\n"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("\x1b[31mred\x1b[0m \x1b[2Jclear \x9b1;2Hmove", "red clear move"),
        ("\x1b]8;;https://evil/?d=1\x07link\x1b]8;;\x1b\\ end", "link end"),
        ("\x1b]52;c;ZXZpbA==\x07clipboard \x9d0;title\x9cx", "clipboard x"),
        (
            "\x1bP1;2|payload\x1b\\dcs \x1b_apc\x1b\\a \x1bc reset \x1b(0charset",
            "dcs a  reset charset",
        ),
        ("\x1b]0;never ends\nnext line", "\nnext line"),
        ("bell\x07 back\x08space nul\x00 del\x7f vt\x0b", "bell backspace nul del vt"),
        ("\u202eright to left\u202c \u2066x\u2069 \u2028line \u200b", "right to left x line "),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("wide\u3000 narrow\u202f spaces\u00a0", "wide\u3000 narrow\u202f spaces\u00a0"),
        ("\x1b[" + "1" * 200 + "m", "[" + "1" * 200 + "m"),
        ("", ""),
    ],
)
def test_only_text_is_left(text: str, shown: str) -> None:
    assert output_text(text) == shown
    assert output_text(shown) == shown


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    text = "\x1b]" * 200_000 + "\x9b;" * 200_000
    assert "\x1b" not in output_text(text)
