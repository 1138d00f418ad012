"""What a call shows in its cell, whatever a vault sends."""

import atexit
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from enclave_kernel.session.call_display import CallDisplay
from enclave_protocol.output_text import CALL_TEXT_CHARS, MAX_TEXT_CHARS
from enclave_protocol.vault_messages import FRACTION_BAR, Progress, Text
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import load_sealed


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Return what a real shell publishes."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor")
    publisher = CapturingDisplayPublisher()  # type: ignore[no-untyped-call]
    shell.display_pub = publisher
    yield publisher.outputs
    shell.atexit_operations()  # type: ignore[no-untyped-call]
    atexit.unregister(shell.atexit_operations)
    InteractiveShell.clear_instance()


def lines(published: list[Any]) -> list[str]:
    """Return the lines on the screen in the end."""
    text: str = published[-1]["data"]["text/plain"]
    return text.splitlines()


def bar(number: int, done: float, total: float | None, **other: Any) -> Progress:
    fields: dict[str, Any] = {"rate": None, "state": 0, **other}
    return Progress(1, number, done, total, **fields)


def test_one_display_is_updated(published: list[Any]) -> None:
    display = CallDisplay()
    for done in range(101):
        display.show(bar(1, done, 100, rate=50.0))
    display.finish()
    assert lines(published) == ["100%|██████████| 100/100 [00:00<00:00, 50it/s]"]
    assert [output["update"] for output in published] == [False] + [True] * (len(published) - 1)
    assert len({output["transient"]["display_id"] for output in published}) == 1
    assert all(set(output["data"]) == {"text/plain"} for output in published)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (bar(1, 25, 100), " 25%|██▌       | 25/100 [00:00<00:00, ?it/s]"),
        (bar(1, 0, 100), "  0%|          | 0/100 [00:00<?, ?it/s]"),
        (bar(1, 7, None, rate=2.5), "7it [00:00, 2.50it/s]"),
        (bar(1, 120, 100), "120it [00:00, ?it/s]"),
        (bar(1, 5, 0), "5it [00:00, ?it/s]"),
        (bar(1, 12_345_678, 2e9, rate=1e6), "  1%|          | 12.3M/2G [00:00<33:07, 1Mit/s]"),
        (bar(1, 1, 1e6, rate=100), "  0%|          | 1/1M [00:00<2:46:39, 100it/s]"),
        (bar(FRACTION_BAR, 0.5, 1.0), " 50%|█████     | [00:00<00:00]"),
        (bar(FRACTION_BAR, 9e99, 1.0), "  0%|          | [00:00<?]"),
        (bar(1, math.inf, math.nan, rate=math.nan), "?it [00:00, ?it/s]"),
        (bar(1, math.nan, 5), "?it [00:00, ?it/s]"),
        (bar(1, -1e300, -5, rate=-1), "?it [00:00, -1it/s]"),
        (bar(1, 1, 5, rate=1e-300), " 20%|██        | 1/5 [00:00<?, 0.00it/s]"),
    ],
)
def test_lines(published: list[Any], message: Progress, line: str) -> None:
    display = CallDisplay()
    display.show(message)
    display.finish()
    assert lines(published) == [line]


def test_finished_bars_stay_or_go_and_their_number_is_bounded(published: list[Any]) -> None:
    display = CallDisplay()
    display.show(bar(1, 2, 4))
    for number in range(2, 1000):
        display.show(bar(number, 3, 3, state=1 if number % 2 else 2))
    display.finish()
    assert len(lines(published)) == 16
    assert lines(published)[0].startswith(" 50%")
    display = CallDisplay()
    for number in range(1000):
        display.show(bar(number + 1, number, 1000))
    display.finish()
    assert len(lines(published)) == 16


def test_a_flood_draws_no_more_than_a_few_times(published: list[Any]) -> None:
    display = CallDisplay()
    for done in range(2000):
        display.show(bar(1, done, 2000))
    display.finish()
    # However slow this machine is: not once for each.
    assert len(published) < 1000
    assert "1999/2000" in lines(published)[0]


def test_text_is_cleaned_again_and_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    display = CallDisplay()
    display.show(Text(1, "\x1b]52;c;ZXZpbA==\x07a\x1b[2Jb\r\u202ec\n"))
    assert capsys.readouterr().out == "ab\nc\n"
    flood = Text(1, "x" * MAX_TEXT_CHARS)
    for _ in range(CALL_TEXT_CHARS // MAX_TEXT_CHARS + 5):
        display.show(flood)
    assert len(capsys.readouterr().out) == CALL_TEXT_CHARS - 5


def test_what_is_wrong_with_a_display_does_not_end_a_call(
    published: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def write(self, text: str) -> int:
            raise OSError(text)

    shell: Any = InteractiveShell.instance()
    shell.display_pub = None
    display = CallDisplay()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        display.show(Text(1, "x"))
    display.show(bar(1, 1, 2))
    display.finish()
    assert published == []


MANIFEST = """
[package]
name = "talker"
version = "1"
module = "talker"
[exports]
functions = { work = "work(steps)" }
[policy]
output = "text"
"""
SOURCE = """
from tqdm import tqdm


def work(steps):
    for step in tqdm(range(steps), desc="secret"):
        print("step", step)
    return steps
"""


def test_a_call_through_the_whole_client(
    published: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with VaultLink() as link:
        package: Any = load_sealed(
            link, seal_package({"talker.py": SOURCE}, MANIFEST), tmp_path
        ).proxy
        for _ in range(2):
            published.clear()
            assert package.work(3) == 3
            assert capsys.readouterr().out == "step 0\nstep 1\nstep 2\n"
            (line,) = lines(published)
            assert line.startswith("100%|██████████| 3/3 [") and "secret" not in repr(published)
        with pytest.raises(Exception, match="incident"):
            package.work("x")
        assert package.work(1) == 1
