import json
from pathlib import Path

import pytest

from enclave_parent_gateway.kernelspec_install import (
    KernelspecError,
    find_kernelspec,
    install_kernelspec,
)


def test_the_kernelspec_names_our_provisioner() -> None:
    spec = json.loads((find_kernelspec() / "kernel.json").read_text())
    provisioner = spec["metadata"]["kernel_provisioner"]
    assert provisioner["provisioner_name"] == "enclave-provisioner"
    assert spec["interrupt_mode"] == "signal"


def test_install_replaces_an_older_one(tmp_path: Path) -> None:
    target = install_kernelspec(tmp_path)
    assert target == tmp_path / "kernels" / "enclave"
    (target / "kernel.json").write_text("{}")
    install_kernelspec(tmp_path)
    wanted = (find_kernelspec() / "kernel.json").read_bytes()
    assert (target / "kernel.json").read_bytes() == wanted


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(KernelspecError, match="cannot write"):
        install_kernelspec(Path("/dev/null/share"))
