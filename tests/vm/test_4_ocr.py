"""The example's notebook in a virtual machine of its own, from a page of pixels to its text.

Notebook, engine and image are the example's. The pages are the user's own data, and small: what
the emulated processor does slowest is the engine's arithmetic.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from skimage.io import imread, imsave

from examples.ocr.build_package import HERE, build
from tests.support.built_image import built_image
from tests.support.package_owner import PUBLISHER, PackageOwner, publisher_fingerprint
from tests.support.vm_home import VmHome, new_vm_home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]
_SIDE = 320
"""Pixels: the engine scales smaller images up."""
_TIMEOUT_S = 1500


def _write_images(folder: Path) -> None:
    """Write the first line of the scanned page, on white paper, and a photograph without text."""
    folder.mkdir()
    source = Path(skimage.data.__file__).parent
    page = imread(source / "page.png")
    paper = np.full((_SIDE, _SIDE), 255, np.uint8)
    paper[40:82] = page[:42, :_SIDE]
    imsave(folder / "page.png", paper)
    photograph = imread(source / "rocket.jpg")
    imsave(folder / "rocket.png", photograph[:_SIDE, :_SIDE])


def _shown(notebook: Path) -> str:
    """Return all that the code cells show as text."""
    shown = []
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            shown += [output.get("text", ""), data.get("text/html", ""), *data]
    return "\n".join("".join(part) for part in shown)


@pytest.fixture(scope="module")
def home() -> Iterator[VmHome]:
    lock = HERE / "image.lock"
    options = ("--development", "--flavour", "datascience", "--requirements", str(lock))
    image = built_image(*options, name="ocr")
    with new_vm_home(image) as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        result = home.up()
        assert result.returncode == 0, f"{result.stderr}\n{home.run('logs').stdout}"
        home.run("trust", PUBLISHER, publisher_fingerprint()).check_returncode()
        yield home
        assert home.run("down").returncode == 0
        assert home.processes() == {}


def test_the_notebook_reads_a_page(home: VmHome, tmp_path: Path) -> None:
    status = home.status()
    owner = PackageOwner(status["kms_endpoint_url"])
    project = home.root / "project"
    project.mkdir()
    key_arn = owner.new_key(status["pcrs"]["0"])
    owner.encrypt(build(tmp_path / "ocr"), key_arn, project / "ocr-1.0.0.encrypted")
    notebook = Path(shutil.copy(HERE / "ocr.ipynb", project))
    _write_images(project / "images")
    with home.sync(project):
        command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
        command += ["--ExecutePreprocessor.startup_timeout=300", "--inplace", str(notebook)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    shown = _shown(notebook)
    # In the table, and as the function returns it.
    assert shown.count("Region-based segmentation") == 2
    assert "no text found" in shown
    assert "image/png" in shown
    assert "Loaded ocr 1.0.0" in shown
