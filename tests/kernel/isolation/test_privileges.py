"""What a process gives up. That it is gone is tested where the walls are (test_notebook_walls)."""

from pathlib import Path

import pytest

from enclave_kernel.isolation.kernel_calls import LockdownError
from enclave_kernel.isolation.privileges import be_killable


@pytest.mark.parametrize(
    ("before", "after"), [("-1000", "0"), ("-1", "0"), ("0", "0"), ("300", "300")]
)
def test_never_spared_for_memory(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "oom_score_adj"
    path.write_text(before)
    be_killable(path)
    assert path.read_text() == after


def test_a_process_that_stays_spared_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(LockdownError, match="killable"):
        be_killable(tmp_path / "no")
