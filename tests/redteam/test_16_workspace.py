"""THREATS E.16, as far as there is anything yet: a notebook's folder, before synchronisation."""

import shutil
from pathlib import Path

from tests.redteam.hostile_notebook import HostileNotebook
from tests.support.enclave_home import kernel, run_code

_PLANTED = (
    "sitecustomize.py",
    "usercustomize.py",
    "ipython_config.py",
    "ipython_kernel_config.py",
    "jupyter_config.py",
    ".ipython/profile_default/startup/00-first.py",
    ".ipython/profile_default/ipython_config.py",
    ".jupyter/jupyter_config.py",
    ".local/lib/python3.11/site-packages/usercustomize.py",
    ".pythonrc.py",
)


def test_y08_start_up_files_in_the_folder(notebook: HostileNotebook) -> None:
    """Whoever may write into the folder does not run code in the kernel that starts there."""
    folder = notebook.folder / "planted"
    for name in _PLANTED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = folder / f"ran-{name.replace('/', '-')}"
        path.write_text(f"open({str(mark)!r}, 'w').close()\n")
    shutil.copy(notebook.folder / "marked.encrypted", folder)
    with kernel(cwd=str(folder)) as (_, client):
        assert Path(run_code(client, "import os; print(os.getcwd())").strip()) == folder
        assert "Loaded" in run_code(client, "%load_encrypted marked.encrypted as m")
        assert run_code(client, "print(m.predict([1.0]).tolist())").strip() == "[2.0]"
        assert sorted(folder.glob("ran-*")) == []
        # The control: whoever does import one of them runs it.
        assert run_code(client, "import ipython_config") == ""
        assert [path.name for path in folder.glob("ran-*")] == ["ran-ipython_config.py"]
