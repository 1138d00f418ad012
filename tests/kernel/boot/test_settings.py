from pathlib import Path

import msgspec
import pytest

from enclave_infra.image.root_settings import ImageSettings, write_settings
from enclave_kernel.boot.kernel_modules import ModuleLoadError, load_modules, parent_cid
from enclave_kernel.boot.settings import BootSettings, SettingsError, read_settings


def test_what_the_builder_writes_is_what_the_boot_reads(tmp_path: Path) -> None:
    for settings in (
        ImageSettings("enclave-base"),
        ImageSettings("enclave-base-development", True, ("/usr/bin/python3.11", "-m", "x")),
    ):
        write_settings(tmp_path, settings)
        read = read_settings(tmp_path / "etc/enclave/image.json")
        assert read == BootSettings(**msgspec.structs.asdict(settings))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"development": true}',
        '{"name": "x", "unknown": 1}',
        '{"name": "x", "software_nsm": ["/bin/nsm"]}',  # in a production image
        '{"name": "' + "x" * 5000 + '"}',
    ],
)
def test_wrong_settings_end_the_boot(tmp_path: Path, text: str) -> None:
    (tmp_path / "image.json").write_text(text)
    with pytest.raises(SettingsError):
        read_settings(tmp_path / "image.json")


def test_no_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        read_settings(tmp_path / "image.json")


def test_parent(tmp_path: Path) -> None:
    assert parent_cid(tmp_path) == 3
    (tmp_path / "parent-cid").write_text("2\n")
    assert parent_cid(tmp_path) == 2
    (tmp_path / "parent-cid").write_text("4\n")
    with pytest.raises(ModuleLoadError, match="expected 2 or 3"):
        parent_cid(tmp_path)


def test_modules(tmp_path: Path) -> None:
    assert load_modules(tmp_path) == ()
    (tmp_path / "order").write_text("a.ko\n")
    (tmp_path / "a.ko").write_bytes(b"no module")
    with pytest.raises(ModuleLoadError, match=r"does not take a\.ko"):
        load_modules(tmp_path)
