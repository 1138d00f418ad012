"""Where a walled notebook's own packages go: a virtual environment in its home, above the image's.

The system is read-only in there, and pip must neither try to change it nor bring once more what it
has. In a virtual environment that sees the image's packages, both are how pip works anyway. It
lives as long as the kernel process: everything of a notebook's is memory. Vaults never see it
(THREATS B-04).
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Final

__all__ = ["make_own_packages"]

_NAME: Final = ".packages"
_PIP: Final = """#!{python}
import sys
from pip._internal.cli.main import main
sys.exit(main())
"""


def make_own_packages(home: Path) -> None:
    """Make the environment, and have this process and what it starts use it.

    Args:
        home: A folder of this process's user.

    Raises:
        OSError: It cannot be made.
    """
    root = home / _NAME
    version = "python{}.{}".format(*sys.version_info)
    own, programs = root / "lib" / version / "site-packages", root / "bin"
    own.mkdir(parents=True)
    programs.mkdir()
    base = Path(getattr(sys, "_base_executable", sys.executable))
    (root / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n"
        "version = {}.{}.{}\n".format(*sys.version_info)
    )
    for name in ("python", "python3", version):
        (programs / name).symlink_to(base)
    pip = programs / "pip"
    pip.write_text(_PIP.format(python=programs / "python"))
    pip.chmod(0o755)
    image = _image_packages()
    # addsitedir, and not the bare path: packages installed for development have .pth files there.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in image]
    (own / "image.pth").write_text("".join(lines))
    at = sys.path.index(image[0]) if image else len(sys.path)
    sys.path.insert(at, str(own))
    sys.executable = str(programs / "python")
    os.environ["PATH"] = os.pathsep.join((str(programs), os.environ.get("PATH", os.defpath)))


def _image_packages() -> list[str]:
    """Return the folders that packages are imported from now, less the standard library's."""
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    standard |= {str(Path(path) / "lib-dynload") for path in tuple(standard) if path}
    return [
        path
        for path in sys.path
        if path.startswith("/") and path not in standard and Path(path).is_dir()
    ]
