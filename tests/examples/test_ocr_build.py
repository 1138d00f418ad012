"""The example package: how it is put together, and that the engine in it reads."""

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from enclave_protocol.manifest import parse_manifest
from enclave_protocol.signature import parse_signature
from examples.ocr import build_package
from examples.ocr.build_package import BuildError, build, fetch_wheel, unpack
from examples.ocr.images import IMAGES, write_images

OCR = Path(__file__).resolve().parents[2] / "examples" / "ocr"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("build") / "ocr")


def wheel(tmp_path: Path, *entries: str | zipfile.ZipInfo) -> Path:
    path = tmp_path / "rapidocr-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rapidocr/__init__.py", "")
        for entry in entries:
            archive.writestr(entry, "content")
    return path


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_unpack_takes_the_package_and_its_licences_only(tmp_path: Path) -> None:
    source = wheel(
        tmp_path,
        "rapidocr/models/a.onnx",
        "rapidocr-1.dist-info/METADATA",
        "rapidocr-1.dist-info/licenses/LICENSE",
        "other/module.py",
    )
    unpack(source, tmp_path / "out")
    written = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("out/**/*.*")}
    written |= {"licenses/rapidocr/LICENSE"} if (tmp_path / "out/licenses").exists() else set()
    assert written == {
        "rapidocr/__init__.py",
        "rapidocr/models/a.onnx",
        "licenses/rapidocr/LICENSE",
    }


@pytest.mark.parametrize(
    "entry",
    [
        "../outside",
        "rapidocr/../../outside",
        "/outside",
        "rapidocr\\..\\outside",
        link("rapidocr/link"),
        "rapidocr-1.dist-info/licenses/../../../outside",
    ],
    ids=str,
)
def test_unpack_refuses_before_it_writes(tmp_path: Path, entry: str | zipfile.ZipInfo) -> None:
    source = wheel(tmp_path, entry)
    with pytest.raises(BuildError, match="not a plain file inside it"):
        unpack(source, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_unpack_refuses_a_name_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = wheel(tmp_path, "rapidocr/a.py", "rapidocr/a.py")
    with pytest.raises(BuildError, match=r"'rapidocr/a\.py' twice"):
        unpack(source, tmp_path / "out")


def test_unpack_refuses_too_many_files(tmp_path: Path) -> None:
    names = (f"rapidocr/{number}" for number in range(build_package.MAX_FILES))
    with pytest.raises(BuildError, match="larger than expected"):
        unpack(wheel(tmp_path, *names), tmp_path / "out")


def test_requirements_without_a_hash_are_refused(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("rapidocr==3.10.0\n")
    with pytest.raises(BuildError, match="pins no"):
        fetch_wheel(requirements, tmp_path / "cache")


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    cached = tmp_path / "cache" / "six-1.17.0-py3-none-any.whl"
    cached.parent.mkdir()
    cached.write_bytes(b"somebody else's")
    with pytest.raises(BuildError, match=r"could not fetch six 1\.17\.0"):
        fetch_wheel(requirements, cached.parent)
    assert not cached.exists()


def test_build_does_not_replace_a_foreign_directory(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(BuildError, match="is no package built here"):
        build(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_build_replaces_what_it_built(package: Path) -> None:
    (package / "stale.py").write_text("")
    assert build(package) == package
    assert not (package / "stale.py").exists()
    assert [path for path in package.parent.iterdir() if path != package] == []


def test_package_holds_weights_and_licences(package: Path) -> None:
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {
        "enclave.toml",
        "ocr.py",
        "licenses/rapidocr/LICENSE",
        "licenses/rapidocr/MODEL_LICENSES.md",
        "rapidocr/config.yaml",
        "rapidocr/default_models.yaml",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    } <= names


# What the package does is run in a process of its own: the engine's modules stay out of ours.
READ = """
import inspect, json, sys
from pathlib import Path
from typing import Any
import numpy as np
from skimage.io import imread
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import ocr

def message(image):
    try:
        ocr.read_text(image)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

reader = ocr.Reader()
found = {}
for path in Path(sys.argv[2]).iterdir():
    result = reader.read(imread(path))
    boxes = result["boxes"]
    assert boxes.dtype == np.float32 and boxes.shape == (len(result["text"]), 4, 2)
    assert all(type(value) is float for value in result["confidence"])
    found[path.name] = result["text"]
page = imread(Path(sys.argv[2], "page.png"))
rgb = np.stack([page] * 3, axis=2)
print(json.dumps({
    "found": found,
    "function": ocr.read_text(page),
    "rgb": ocr.read_text(rgb),
    "strict": ocr.Reader(min_confidence=0.98).read(page)["text"],
    "refused": [message(i) for i in ("/etc/passwd", page / 255, page[0], page[:0])],
    "signatures": {
        "Reader": str(inspect.signature(ocr.Reader)),
        "read": str(inspect.signature(reader.read)),
        "read_text": str(inspect.signature(ocr.read_text)),
    },
}))
"""


@pytest.fixture(scope="module")
def answers(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    images = tmp_path_factory.mktemp("images")
    assert [path.name for path in write_images(images)] == list(IMAGES)
    home = tmp_path_factory.mktemp("home")
    result = subprocess.run(
        [sys.executable, "-c", READ, str(package), str(images)],
        env={"HOME": str(home), "TMPDIR": str(home), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers: dict[str, Any] = json.loads(result.stdout)
    answers["left behind"] = [path.name for path in home.rglob("*")]
    return answers


def test_engine_reads_the_page_and_nothing_else(answers: dict[str, Any]) -> None:
    page = answers["found"].pop("page.png")
    assert page[:2] == [
        "Region-based segmentation",
        "Let us first determine markers of the coins and the",
    ]
    assert len(page) == 7
    assert answers["found"] == {name: [] for name in IMAGES if name != "page.png"}
    assert answers["function"] == "\n".join(page)


def test_engine_writes_nothing_anywhere(answers: dict[str, Any]) -> None:
    # ONNX Runtime's telemetry, which the package turns off, begins with a session file.
    assert answers["left behind"] == []


def test_rgb_reads_like_grey(answers: dict[str, Any]) -> None:
    assert answers["rgb"].startswith("Region-based segmentation\n")


def test_min_confidence_leaves_lines_out(answers: dict[str, Any]) -> None:
    assert 0 < len(answers["strict"]) < 7


def test_what_is_no_image_is_refused_by_what_was_found(answers: dict[str, Any]) -> None:
    path, floats, row, empty = answers["refused"]
    assert path == "TypeError: image is a str, expected a numpy array of uint8"
    assert floats == "TypeError: image is a float64 array, expected a numpy array of uint8"
    assert row.startswith("ValueError: image has shape (384,), expected (H, W)")
    assert empty.startswith("ValueError: image has shape (0, 384), expected 1 to")


def test_manifest_says_what_the_code_has(answers: dict[str, Any]) -> None:
    manifest = parse_manifest((OCR / "package" / "enclave.toml").read_text())
    reader = manifest.exports.classes["Reader"]
    declared = [manifest.exports.functions["read_text"], reader.init, *reader.methods]
    parameters = {
        name: list(signature.parameters) for name, signature in map(parse_signature, declared)
    }
    found = {
        name: [part.partition(":")[0].strip() for part in text[1:].partition(")")[0].split(",")]
        for name, text in answers["signatures"].items()
    }
    found["Reader"].remove("*")
    assert parameters == found
    assert {manifest.package.name, manifest.package.module} == {"ocr"}
