"""The user's own data for the example: a scanned page, a blurred one and photographs without text.

All ship with scikit-image; nothing is downloaded.
"""

import shutil
from pathlib import Path

import skimage.data

__all__ = ["IMAGES", "write_images"]

# The engine finds text in page.png alone: text.png is too blurred for it, the others hold none.
IMAGES = ("page.png", "text.png", "astronaut.png", "hubble_deep_field.jpg", "rocket.jpg")


def write_images(folder: Path) -> list[Path]:
    """Copy the five images into `folder`, made when absent, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(skimage.data.__file__).parent
    return [Path(shutil.copyfile(source / name, folder / name)) for name in IMAGES]
