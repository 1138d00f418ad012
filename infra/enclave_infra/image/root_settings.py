"""Turns unpacked packages into the root of an image: what is taken out, and our few files in /etc.

Everything that Debian's maintainer scripts would have made and an enclave needs is made here.
"""

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from enclave_infra.image.kernel_files import KernelFiles
from enclave_infra.image.python_packages import PYTHON

__all__ = ["ImageSettings", "finish_root", "strip_root", "write_boot", "write_settings"]

_FOLDERS: Final = (
    *(
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "mnt",
        "root",
        "home",
        "var/tmp",
        "var/lib",
        "etc/enclave",
    ),
)
_TAKEN_OUT: Final = (
    *("boot", "media", "opt", "srv", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/log"),
    *(
        "var/backups",
        "var/mail",
        "var/spool",
        "var/local",
        "var/opt",
        "var/run",
        "var/lock",
        "var/lib/misc",
    ),
    *(
        "etc/apt",
        "etc/dpkg",
        "etc/cron.daily",
        "etc/cron.weekly",
        "etc/default",
        "etc/skel",
        "etc/init.d",
    ),
    *(
        "etc/kernel",
        "etc/logcheck",
        "etc/update-motd.d",
        "etc/ca-certificates",
        "etc/opt",
        "etc/alternatives",
    ),
    *(
        "usr/share/man",
        "usr/share/info",
        "usr/share/locale",
        "usr/share/lintian",
        "usr/share/doc-base",
    ),
    *("usr/share/bug", "usr/share/menu", "usr/share/bash-completion", "usr/share/common-licenses"),
    *("usr/share/debconf", "usr/share/debianutils", "usr/share/pixmaps", "usr/share/applications"),
    *("usr/share/binfmts", "usr/share/gcc", "usr/share/gdb", "usr/share/python3", "usr/include"),
    *("usr/lib/mime", "usr/lib/apt", "usr/lib/dpkg", "usr/share/base-files", "usr/share/dict"),
    *(
        f"usr/lib/python{PYTHON}/{name}"
        for name in ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo")
    ),
    *(
        "lib32",
        "libx32",
        "usr/lib32",
        "usr/libx32",
        "usr/games",
        "usr/local/games",
        "usr/src",
        "usr/local/src",
    ),
    *("etc/fstab", "etc/issue", "etc/issue.net", "etc/netconfig", "etc/gss", "etc/xattr.conf"),
    *("usr/sbin/ldconfig", "usr/bin/ld.so", "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix"),
)
_ADMINISTRATION: Final = (
    *("chsh", "chfn", "login", "su", "newgrp", "passwd", "gpasswd", "mount", "umount", "bashbug"),
)
_SHELL_LINKS: Final = {"usr/bin/sh": "dash", "etc/localtime": "/usr/share/zoneinfo/Etc/UTC"}
_USERS: Final = """\
root:x:0:0:root:/root:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP: Final = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
_SHADOW: Final = "root:!*:19000:0:99999:7:::\nnobody:!*:19000:0:99999:7:::\n"
_HOSTS: Final = "127.0.0.1 localhost enclave\n::1 localhost\n"
_NSSWITCH: Final = "".join(
    f"{name}: files\n"
    for name in ("passwd", "group", "shadow", "hosts", "networks", "services", "protocols")
)
_INIT: Final = """\
#!/usr/bin/python{python} -I
from enclave_kernel.boot.__main__ import main

main()
"""


class ImageSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the image's first process reads: `enclave_kernel.boot.settings.BootSettings`."""

    name: str
    development: bool = False
    software_nsm: tuple[str, ...] = ()


def strip_root(root: Path) -> None:
    """Take out what an enclave never reads: package management, manuals, translations."""
    for name in _TAKEN_OUT:
        path = root / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
    for name in _ADMINISTRATION:
        for folder in ("usr/bin", "usr/sbin"):
            (root / folder / name).unlink(missing_ok=True)
    _keep_copyright(root / "usr/share/doc")
    for name in ("tmp", "dev", "run"):
        shutil.rmtree(root / name, ignore_errors=True)
    for cache in list(root.rglob("__pycache__")):
        shutil.rmtree(cache)


def finish_root(root: Path) -> None:
    """Make the folders and files that the packages do not bring."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    texts = {
        "passwd": _USERS,
        "group": _GROUP,
        "shadow": _SHADOW,
        "hosts": _HOSTS,
        "hostname": "enclave\n",
        "nsswitch.conf": _NSSWITCH,
        "resolv.conf": "",
    }
    for name, text in texts.items():
        # Made anew: mmdebstrap leaves copies of this machine's.
        (root / "etc" / name).unlink(missing_ok=True)
        (root / "etc" / name).write_text(text)
        (root / "etc" / name).chmod(0o644)
    for name, target in _SHELL_LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    _write_certificates(root)


def write_boot(folder: Path, kernel: KernelFiles) -> None:
    """Lay out the first ramdisk in a new folder: `/init`, and what depends on the kernel."""
    modules = folder / "modules"
    modules.mkdir(parents=True)
    for name, content in kernel.modules.items():
        (modules / name).write_bytes(content)
    (modules / "order").write_text("".join(f"{name}\n" for name in kernel.modules))
    (modules / "parent-cid").write_text(f"{kernel.parent_cid}\n")
    path = folder / "init"
    path.write_text(_INIT.format(python=PYTHON))
    path.chmod(0o755)


def write_settings(root: Path, settings: ImageSettings) -> None:
    """Write what the image was built as."""
    path = root / "etc/enclave/image.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(settings)) + b"\n")


def _keep_copyright(documents: Path) -> None:
    for folder in documents.iterdir() if documents.is_dir() else ():
        for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "copyright":
                path.unlink()


def _write_certificates(root: Path) -> None:
    """Write the bundle that update-ca-certificates would have made."""
    source = root / "usr/share/ca-certificates/mozilla"
    texts = [path.read_bytes().rstrip() + b"\n" for path in sorted(source.glob("*.crt"))]
    target = root / "etc/ssl/certs/ca-certificates.crt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(texts))
    link = root / "usr/lib/ssl/cert.pem"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(link):
        link.symlink_to("/etc/ssl/certs/ca-certificates.crt")
