"""Text of scripts on its way out of a vault: two streams, and a reader that takes its time."""

import threading
import time

import pytest

from enclave_kernel.vault.call_output import CallOutput
from enclave_protocol.output_text import MAX_TEXT_CHARS, TEXT_BURST_CHARS
from enclave_protocol.vault_messages import Progress, Text


class Reader:
    """Takes messages, when it may."""

    def __init__(self) -> None:
        self.taken: list[Text] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def send(self, message: Progress | Text) -> None:
        assert self.may_go_on.wait(30)
        assert isinstance(message, Text)
        self.taken.append(message)

    def text(self, stream: str) -> str:
        return "".join(message.text for message in self.taken if message.stream == stream)


def test_streams_stay_apart_and_in_order() -> None:
    reader = Reader()
    output = CallOutput(reader.send, "all")
    output.begin(1)
    with output.sending:
        for number in range(3):
            output.text(f"out {number}\n")
            output.text(f"err \x1b[31m{number}\n", "stderr")
    output.end()
    shown = [(message.stream, message.text) for message in reader.taken]
    assert shown == [
        pair for n in range(3) for pair in (("stdout", f"out {n}\n"), ("stderr", f"err {n}\n"))
    ]


def test_one_that_waits_leaves_nothing_out_and_keeps_little() -> None:
    reader = Reader()
    output = CallOutput(reader.send, "text", patient=True)
    output.begin(1)
    line = "x" * 1023 + "\n"
    count = 4 * TEXT_BURST_CHARS // len(line)
    printed = 0

    def print_all() -> None:
        nonlocal printed
        for _ in range(count):
            output.text(line)
            printed += 1

    reader.may_go_on.clear()
    script = threading.Thread(target=print_all)
    script.start()
    time.sleep(0.5)
    # It waits, with what may wait behind it and no more.
    assert script.is_alive()
    assert printed * len(line) < 3 * TEXT_BURST_CHARS
    reader.may_go_on.set()
    script.join(30)
    output.end()
    assert reader.text("stdout") == line * count
    assert all(len(message.text) <= MAX_TEXT_CHARS for message in reader.taken)


def test_a_finalizer_that_prints_while_text_is_sent_waits_for_nobody() -> None:
    output: CallOutput
    printed: list[Progress | Text] = []

    def send(message: Progress | Text) -> None:
        if len(printed) < 3:
            # As a finalizer would, in whichever thread it runs.
            printed.append(message)
            output.text("y" * TEXT_BURST_CHARS)
            output.text("z")

    output = CallOutput(send, "text", patient=True)
    output.begin(1)
    output.text("x")
    done = threading.Thread(target=output.end, daemon=True)
    done.start()
    done.join(20)
    assert not done.is_alive()


@pytest.mark.parametrize(("allowed", "shown"), [("none", ""), ("progress", ""), ("text", "x")])
def test_the_policy_decides(allowed: str, shown: str) -> None:
    reader = Reader()
    output = CallOutput(reader.send, allowed, patient=True)  # type: ignore[arg-type]
    output.begin(1)
    output.text("x")
    output.end()
    assert reader.text("stdout") == shown
