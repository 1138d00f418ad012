"""What a development image has beyond a production one."""

import json

import pytest

from enclave_infra.image.image_view import view_image
from tests.support.built_image import built_image

pytestmark = pytest.mark.timeout(900)
_SITE = "usr/local/lib/python3.11/dist-packages"


def test_it_says_so_and_has_the_software_nsm() -> None:
    view = view_image(built_image("--development", name="development"))
    files = view.read_files(lambda name: name == "etc/enclave/image.json")
    settings = json.loads(files["etc/enclave/image.json"])
    assert settings["name"] == view.metadata["ImageName"] == "enclave-base-development"
    assert settings["development"]
    assert settings["software_nsm"][-1] == "enclave_infra.software_nsm"
    (_, root) = view.ramdisks()
    names = {entry.name for entry in root}
    assert f"{_SITE}/enclave_infra/software_nsm/__main__.py" in names
    parts = {name.split("/")[6] for name in names if name.startswith(f"{_SITE}/enclave_infra/")}
    assert parts == {"__init__.py", "__pycache__", "software_nsm"}
