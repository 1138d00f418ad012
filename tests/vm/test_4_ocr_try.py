"""The OCR notebook of examples/ocr, by nbconvert, in the image that it needs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.built_image import built_image
from tests.support.package_owner import PUBLISHER, PackageOwner, publisher_fingerprint
from tests.support.project_wheel import ROOT
from tests.support.vm_home import VmHome, new_vm_home

pytestmark = pytest.mark.vm
_EXAMPLE = ROOT / "examples" / "ocr"


@pytest.fixture
def home() -> Iterator[VmHome]:
    lock = f"--requirements={_EXAMPLE / 'image.lock'}"
    image = Path("/tmp/wt-qemu-scratch/ocr.eif")
    with new_vm_home(image) as home, pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        up = home.up()
        assert up.returncode == 0, up.stderr
        home.run("trust", PUBLISHER, publisher_fingerprint()).check_returncode()
        yield home


def test_the_ocr_notebook(home: VmHome) -> None:
    owner = PackageOwner(home.status()["kms_endpoint_url"])
    key_arn = owner.new_key(home.status()["pcrs"]["0"])
    package, project = home.root / "package", home.root / "project"
    project.mkdir()
    build = [sys.executable, str(_EXAMPLE / "build_package.py"), "--output", str(package)]
    subprocess.run(build, check=True, timeout=120)
    owner.encrypt(package, key_arn, project / "ocr-1.0.0.encrypted")
    images = "import sys; from pathlib import Path; from images import write_images; "
    images += "write_images(Path(sys.argv[1]))"
    command = [sys.executable, "-c", images, str(project / "images")]
    subprocess.run(command, check=True, cwd=_EXAMPLE, timeout=60)
    shutil.copyfile(_EXAMPLE / "ocr.ipynb", project / "ocr.ipynb")
    with home.sync(project):
        command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
        done = subprocess.run(
            [*command, str(project / "ocr.ipynb")],
            env=home.environ,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    cells = json.loads((project / "ocr.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "Region-based segmentation" in printed
