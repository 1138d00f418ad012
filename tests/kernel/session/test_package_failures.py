"""What a vault that a package took over says is shown as text, and as little of it as fits."""

from enclave_kernel.session.package_failures import (
    CallLimitError,
    EncryptedPackageError,
    rebuild_raised,
    rebuild_refused,
)
from enclave_protocol.vault_messages import Raised, Refused

HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\r\n\u202e" + "x" * 2000
SHOWN = "<encrypted p 1>"


def test_a_shown_message_is_one_plain_line() -> None:
    error = rebuild_raised(Raised(1, "ValueError", HOSTILE, "0" * 16), SHOWN)
    assert type(error) is ValueError
    assert str(error).isprintable() and len(str(error)) == 500
    assert str(error).startswith(" ]52;c;cm0gLXJm  [2J   xxx")


def test_a_hidden_error_shows_a_bounded_name_and_incident() -> None:
    for name in (HOSTILE, "x" * 2000):
        error = rebuild_raised(Raised(1, name, None, HOSTILE), SHOWN)
        assert isinstance(error, EncryptedPackageError)
        assert str(error).isprintable() and len(str(error)) < 250
        assert error.incident is not None and error.incident.isprintable()
        assert len(error.incident) == 64


def test_a_refusal_is_one_plain_line() -> None:
    for kind, expected in (
        ("BudgetExceededError", CallLimitError),
        ("TypeError", TypeError),
        (HOSTILE, EncryptedPackageError),
    ):
        error = rebuild_refused(Refused(1, kind, HOSTILE))
        assert type(error) is expected
        assert str(error).isprintable() and len(str(error)) == 500
