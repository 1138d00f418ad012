"""What a call may show while it runs, as it leaves a real vault."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_kernel.session.package_loading import LoadedPackage
from enclave_kernel.vault import progress
from enclave_protocol import vault_messages as vm
from enclave_protocol.output_text import MAX_TEXT_CHARS, TEXT_BURST_CHARS
from enclave_protocol.value_codec import decode_value, encode_arguments
from tests.support.sealed_package import seal_package
from tests.support.vault_link import VaultLink
from tests.support.vault_packages import CANARY, load_sealed

MANIFEST = """
[package]
name = "talker"
version = "1"
module = "talker"
[exports]
functions = { run = "run(code)" }
[policy]
errors = ["ValueError", "TypeError"]
output = "%s"
"""
SOURCE = """
import logging, sys, warnings
import sys
from enclave_kernel import vault

early = sys.stdout


def run(code):
    scope = {"__name__": "talker", "vault": vault, "early": early}
    exec(code, scope)
    return scope.get("result")
"""


@pytest.fixture(scope="module")
def link() -> Iterator[VaultLink]:
    with VaultLink() as link:
        yield link


@pytest.fixture(scope="module")
def talkers(link: VaultLink, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedPackage]:
    folder: Path = tmp_path_factory.mktemp("talker")
    return {
        output: load_sealed(link, seal_package({"talker.py": SOURCE}, MANIFEST % output), folder)
        for output in ("none", "progress", "text")
    }


def watch(loaded: LoadedPackage, code: str) -> tuple[list[Any], Any]:
    """Return what came before the reply, and the reply: a result as its value."""
    channel = loaded.client._channel
    loaded.client._last_request = number = loaded.client._last_request + 1
    channel.send(vm.Call(number, "run", encode_arguments((code,), {}).header))
    shown: list[Any] = []
    while True:
        payload, contents = channel.receive()
        message = vm.decode_vault_message(payload)
        assert message.request_id == number  # type: ignore[union-attr]
        if isinstance(message, vm.Progress | vm.Text):
            assert not contents
            shown.append(message)
        elif isinstance(message, vm.Result):
            return shown, decode_value(message.value, contents)
        else:
            return shown, message


def printed(shown: list[Any]) -> str:
    return "".join(message.text for message in shown if isinstance(message, vm.Text))


def last_of_each_bar(shown: list[Any]) -> dict[int, vm.Progress]:
    return {message.bar: message for message in shown if isinstance(message, vm.Progress)}


LOOP = f"""
from tqdm import tqdm
for _ in tqdm(range(50), desc="{CANARY}", postfix="{CANARY}", unit="{CANARY}"):
    pass
"""


@pytest.mark.parametrize("output", ["progress", "text"])
@pytest.mark.parametrize("imported", ["from tqdm import tqdm", "from tqdm.auto import tqdm"])
def test_tqdm_shows_numbers_and_none_of_its_text(
    talkers: dict[str, LoadedPackage], output: str, imported: str
) -> None:
    code = LOOP.replace("from tqdm import tqdm", imported)
    shown, reply = watch(talkers[output], code)
    assert reply is None
    (bar,) = last_of_each_bar(shown).values()
    assert (bar.done, bar.total, bar.state) == (50, 50, 1)
    assert bar.rate is None or bar.rate > 0
    assert CANARY not in repr(shown)


def test_bars_inside_and_after_each_other(talkers: dict[str, LoadedPackage]) -> None:
    code = """
from tqdm import tqdm, trange
for _ in trange(3):
    for _ in tqdm("ab", leave=False):
        pass
with tqdm() as bar:
    bar.update(7)
with tqdm(total=10, disable=True) as bar:
    bar.update(10)
"""
    shown, _ = watch(talkers["progress"], code)
    bars = list(last_of_each_bar(shown).values())
    assert [(bar.done, bar.total, bar.state) for bar in bars if bar.state == 1] == [
        (3, 3, 1),
        (7, None, 1),
    ]
    assert {bar.state for bar in bars} == {1, 2}


def test_a_bar_outlives_its_call(talkers: dict[str, LoadedPackage]) -> None:
    watch(talkers["progress"], "import builtins, tqdm; builtins.bar = tqdm.tqdm(total=9)")
    code = "import tqdm\nother = tqdm.tqdm(total=5)\nbar.update(3); bar.refresh(); other.refresh()"
    shown, _ = watch(talkers["progress"], code)
    assert sorted((bar.done, bar.total) for bar in last_of_each_bar(shown).values()) == [
        (0, 5),
        (3, 9),
    ]


def test_a_share(talkers: dict[str, LoadedPackage]) -> None:
    code = "vault.progress(0.25); vault.progress(%s)"
    for given, shown_as in (("0.5", 0.5), ("1", 1.0), ("7", 1.0), ("-math.inf", 0.0)):
        shown, reply = watch(talkers["progress"], f"import math; {code % given}")
        assert reply is None
        assert last_of_each_bar(shown)[vm.FRACTION_BAR].done == shown_as
    _, reply = watch(talkers["progress"], code % "float('nan')")
    assert (reply.type_name, reply.message) == (
        "ValueError",
        "progress(fraction): expected 0 to 1, not NaN",
    )
    # On the owner's own machine, outside a vault, it is harmless.
    progress(0.5)
    with pytest.raises(ValueError, match="NaN"):
        progress(math.nan)


def test_a_loop_that_reports_all_the_time_is_thinned_out(
    talkers: dict[str, LoadedPackage],
) -> None:
    code = """
import time
began = time.monotonic()
for step in range(300_000):
    vault.progress(step / 300_000)
result = time.monotonic() - began
"""
    shown, seconds = watch(talkers["progress"], code)
    assert 1 <= len(shown) <= 10 * seconds + 3
    assert shown[-1].done == pytest.approx(1, abs=1e-4)


def test_text_comes_while_the_call_runs_and_in_order(talkers: dict[str, LoadedPackage]) -> None:
    code = """
import sys, time
print("one", 1)
print("two", file=early, flush=True)
time.sleep(0.5)
sys.stdout.buffer.write("drü".encode()[:3]); sys.stdout.buffer.write("drü".encode()[3:])
sys.stdout.writelines(["\\x1b[31mred\\x1b[0m", "\\n"])
raise ValueError("last")
"""
    shown, reply = watch(talkers["text"], code)
    assert printed(shown) == "one 1\ntwo\ndrüred\n"
    assert len(shown) >= 2
    assert reply.message == "last"


@pytest.mark.parametrize("output", ["none", "progress", "text"])
def test_nothing_else_than_stdout_ever_crosses(
    talkers: dict[str, LoadedPackage], output: str
) -> None:
    code = f"""
import ctypes, faulthandler, logging, os, sys, threading, traceback, warnings
print("{CANARY}", file=sys.stderr)
sys.__stderr__.write("{CANARY}")
logging.warning("{CANARY}")
warnings.warn("{CANARY}")
os.write(1, b"{CANARY}"); os.write(2, b"{CANARY}")
ctypes.CDLL(None).puts(b"{CANARY}"); ctypes.CDLL(None).fflush(None)
faulthandler.dump_traceback(2)
thread = threading.Thread(target=lambda: 1 / 0, name="{CANARY}")
thread.start(); thread.join()
class Bad:
    def __del__(self):
        raise ValueError("{CANARY}")
Bad()
try:
    raise ValueError("{CANARY}")
except ValueError:
    traceback.print_exc()
print("said")
"""
    shown, reply = watch(talkers[output], code)
    assert reply is None
    assert printed(shown) == ("said\n" if output == "text" else "")
    assert CANARY not in repr(shown)


def test_no_output_at_all_where_the_policy_says_so(talkers: dict[str, LoadedPackage]) -> None:
    shown, reply = watch(talkers["none"], f"{LOOP}\nprint('x')\nvault.progress(1)\nresult = 5")
    assert (shown, reply) == ([], 5)


def test_too_much_text_is_left_out_and_counted(link: VaultLink, tmp_path: Path) -> None:
    loaded = load_sealed(link, seal_package({"talker.py": SOURCE}, MANIFEST % "text"), tmp_path)
    shown, reply = watch(loaded, "print('x' * 30_000_000)\nprint('y' * 100)\nresult = 1")
    assert reply == 1
    text = printed(shown)
    assert all(len(message.text) <= MAX_TEXT_CHARS for message in shown)
    assert text.count("x") <= TEXT_BURST_CHARS
    assert "characters of output left out" in text
    left_out = int(text.rpartition("[")[2].split()[0])
    # Two line feeds were printed, and two come with the note.
    kept = text.count("x") + text.count("y") - "characters of output left out".count("x")
    assert left_out + kept + text.count("\n") - 2 == 30_000_000 + 100 + 2
    # The next call has what was earned meanwhile, and is no way around the limit.
    shown, _ = watch(loaded, "import time\ntime.sleep(0.5)\nprint('short')")
    assert printed(shown) == "short\n"
    shown, _ = watch(loaded, "print('x' * 1_000_000)")
    assert "characters of output left out" in printed(shown)


def test_output_between_calls_and_of_forks_goes_nowhere(
    talkers: dict[str, LoadedPackage],
) -> None:
    code = """
import os, threading, time
def late():
    time.sleep(0.3)
    print("late")
threading.Thread(target=late).start()
if not os.fork():
    print("child")
    os._exit(0)
os.wait()
print("now")
"""
    shown, _ = watch(talkers["text"], code)
    assert printed(shown) == "now\n"
    shown, _ = watch(talkers["text"], "import time; time.sleep(0.8)")
    assert "child" not in printed(shown)


def test_finalizers_may_report(talkers: dict[str, LoadedPackage]) -> None:
    code = """
import gc
from tqdm import tqdm
class Loud:
    def __init__(self):
        self.me = self
        self.bar = tqdm(total=2)
    def __del__(self):
        print("gone")
        vault.progress(0.5)
for _ in range(200):
    Loud()
gc.collect()
"""
    shown, reply = watch(talkers["text"], code)
    assert reply is None
    assert printed(shown).count("gone") == 200
