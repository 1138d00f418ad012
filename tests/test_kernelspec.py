"""kernelspec/enclave is what Jupyter, and its front ends, expect of a kernelspec."""

import struct
import xml.etree.ElementTree as ET
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpec

SPEC = Path(__file__).resolve().parents[1] / "kernelspec" / "enclave"


def test_jupyter_reads_it_and_finds_our_provisioner() -> None:
    spec = KernelSpec.from_resource_dir(str(SPEC))
    assert (spec.display_name, spec.language) == ("Python 3 (enclave)", "python")
    # A message interrupt never reaches a C call that holds the GIL (docs: FACTS, Jupyter).
    assert spec.interrupt_mode == "signal"
    # What jupyter_client's transport_encryption asks for.
    assert spec.metadata["supported_encryption"] == ["curve"]
    name = spec.metadata["kernel_provisioner"]["provisioner_name"]
    assert [point.name for point in entry_points(group="jupyter_client.kernel_provisioners")].count(
        name
    ) == 1


@pytest.mark.parametrize("pixels", [32, 64])
def test_logo_has_the_size_it_is_named_after(pixels: int) -> None:
    header = (SPEC / f"logo-{pixels}x{pixels}.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (pixels, pixels)


def test_vector_logo_is_a_drawing_without_script_or_reference() -> None:
    tags = {element.tag.rpartition("}")[2] for element in ET.parse(SPEC / "logo-svg.svg").iter()}  # noqa: S314
    assert tags <= {"svg", "title", "g", "rect", "path"}
