"""THREATS rows that only a real machine can show: a real kernel, a real /dev, real vsock.

What runs here runs in the notebook's process or in a vault, of a development image; the walls are
the same in a production image.
"""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from enclave_parent_gateway.errors import TransportError
from enclave_parent_gateway.transport import connect
from enclave_protocol.frame import encode_frame
from enclave_protocol.vsock_ports import HEARTBEAT_PORT, SUPERVISOR_PORT
from tests.support.enclave_home import kernel, run_code
from tests.support.notebook_cells import run_cell
from tests.support.package_owner import PackageOwner, write_package
from tests.support.supervisor_process import hangs_up
from tests.support.vm_home import VmHome

pytestmark = pytest.mark.vm

_ATTACKS = r"""
import ctypes, errno, json, os, platform, socket

_libc = ctypes.CDLL(None, use_errno=True)
_AF_VSOCK, _AT_FDCWD = 40, -100
_NAMES = ("socket", "mknodat", "unshare", "init_module", "reboot", "clock_settime", "ptrace")
_NUMBERS = dict(zip(_NAMES, {
    "x86_64": (41, 259, 272, 175, 169, 227, 101),
    "aarch64": (198, 33, 97, 105, 142, 112, 117),
}[platform.machine()]))


def _call(name, *arguments):
    ctypes.set_errno(0)
    result = _libc.syscall(*map(ctypes.c_long, (_NUMBERS[name], *arguments)))
    if result < 0:
        return errno.errorcode[ctypes.get_errno()]
    return "DONE"


def vsock_sockets():
    # All types, also with the upper half of the register set: V-01, V-11, K-07.
    return {f"{kind} {family}": _call("socket", family, kind, 0)
            for family in (_AF_VSOCK, (1 << 32) | _AF_VSOCK) for kind in (1, 2, 3, 5)}


def vsock_peers():
    # The parent, the machine's own CIDs, the supervisor's and the heartbeat's port: V-01 to V-03.
    found = {}
    for cid in (0, 1, 2, 3, 16):
        for port in (901, 9000, 5006):
            try:
                with socket.socket(_AF_VSOCK, socket.SOCK_STREAM) as sock:
                    sock.settimeout(2)
                    sock.connect((cid, port))
                found[f"{cid}:{port}"] = "DONE"
            except OSError as error:
                found[f"{cid}:{port}"] = errno.errorcode[error.errno]
    return found


def devices():
    found = {"listed": sorted(os.listdir("/dev"))}
    for name in ("nsm", "vsock", "mem", "kmsg", "kvm", "port", "hwrng", "vda", "ttyS0", "ttyAMA0",
                 "console"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDWR))
            found[name] = "DONE"
        except OSError as error:
            found[name] = errno.errorcode[error.errno]
    place = f"{os.environ.get('HOME', '/tmp')}/node".encode()
    path = ctypes.create_string_buffer(place)
    # The NSM's and vsock's driver, had it a node: misc devices.
    place = ctypes.addressof(path)
    found["mknod"] = _call("mknodat", _AT_FDCWD, place, 0o020666, os.makedev(10, 58))
    return found


def sysctls():
    names = ("user/max_user_namespaces", "kernel/modules_disabled", "kernel/kptr_restrict",
             "kernel/dmesg_restrict", "kernel/unprivileged_bpf_disabled",
             "kernel/perf_event_paranoid", "kernel/yama/ptrace_scope", "fs/suid_dumpable",
             "kernel/core_pattern", "fs/protected_symlinks", "fs/protected_hardlinks",
             "kernel/kexec_load_disabled", "kernel/sysrq")
    found = {}
    for name in names:
        try:
            with open(f"/proc/sys/{name}") as file:
                found[name] = file.read().strip()
        except OSError as error:
            found[name] = errno.errorcode[error.errno]
        try:
            with open(f"/proc/sys/{name}", "w") as file:
                file.write("1")
            found[name + " written"] = "DONE"
        except OSError as error:
            found[name + " written"] = errno.errorcode[error.errno]
    return found


def kernel_doors():
    found = {f"unshare {flag:#x}": _call("unshare", flag) for flag in (0x10000000, 1 << 30)}
    found["init_module"] = _call("init_module", 0, 0, 0)
    found["reboot"] = _call("reboot", 0, 0, 0, 0)
    found["settime"] = _call("clock_settime", 0, 0)
    found["ptrace"] = _call("ptrace", 16, 1, 0, 0)
    for path in ("/proc/kcore", "/proc/kmsg", "/proc/1/mem", "/development/nsm-root/root-key.pem",
                 "/development/pcr0", "/run/software-nsm/nsm.sock", "/run/enclave",
                 "/sys/kernel/debug", "/proc/sysrq-trigger"):
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                found[path] = "DONE" if os.read(fd, 16) else "EMPTY"
            finally:
                os.close(fd)
        except OSError as error:
            found[path] = errno.errorcode[error.errno]
    return found


def interfaces():
    try:
        with open("/proc/net/dev") as file:
            return {"lines": [line.split(":")[0].strip() for line in file.readlines()[2:]]}
    except OSError as error:
        return {"lines": errno.errorcode[error.errno]}


def attack(name):
    return json.dumps(globals()[name]())
"""
_MANIFEST = """
[package]
name = "hostile"
version = "1.0"
module = "hostile"
[exports.functions]
attack = "attack(name)"
[policy]
errors = ["ValueError", "OSError"]
"""
_SYSCTLS = {
    "user/max_user_namespaces": "0",
    "kernel/modules_disabled": "1",
    "kernel/kptr_restrict": "2",
    "kernel/dmesg_restrict": "1",
    "kernel/perf_event_paranoid": "3",
    "fs/suid_dumpable": "0",
    "kernel/core_pattern": "|/bin/false",
    "fs/protected_symlinks": "1",
    "fs/protected_hardlinks": "1",
    "kernel/yama/ptrace_scope": "3",
    "kernel/sysrq": "0",
}
_REFUSED = {"EPERM", "EACCES", "ENOENT", "EAFNOSUPPORT", "ENOSYS", "EROFS", "ENXIO", "EINVAL"}


class Hostile:
    """The same attacks, in the notebook's process and in a vault."""

    def __init__(self, client: BlockingKernelClient, where: str) -> None:
        self.where = where
        self._client = client

    def run(self, name: str) -> dict[str, Any]:
        call = f"attack({name!r})" if self.where == "notebook" else f"hostile.attack({name!r})"
        cell = run_cell(self._client, f"print({call})", 60)
        assert cell.error is None, cell.error
        found: dict[str, Any] = json.loads(cell.printed)
        return found


@pytest.fixture(scope="module")
def client(
    project: Path, owner: PackageOwner, key_arn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BlockingKernelClient]:
    source = tmp_path_factory.mktemp("hostile")
    write_package(source, {"enclave.toml": _MANIFEST, "hostile/__init__.py": _ATTACKS})
    owner.encrypt(source, key_arn, project / "hostile.encrypted")
    with kernel(cwd=str(project)) as (_, opened):
        loaded = run_cell(opened, "%load_encrypted hostile.encrypted", 60)
        assert loaded.error is None, loaded.error
        assert run_code(opened, _ATTACKS) == ""
        yield opened


@pytest.fixture(params=["notebook", "vault"])
def hostile(request: pytest.FixtureRequest, client: BlockingKernelClient) -> Hostile:
    return Hostile(client, request.param)


def test_control_the_attack_works_where_nothing_forbids_it() -> None:
    names: dict[str, Any] = {}
    exec(_ATTACKS, names)  # noqa: S102
    outcomes = json.loads(names["attack"]("vsock_sockets"))
    assert {"1 40", f"1 {(1 << 32) | 40}"} <= {k for k, v in outcomes.items() if v == "DONE"}


def test_v01_v11_k07_nobody_gets_a_vsock_socket(hostile: Hostile) -> None:
    outcomes = hostile.run("vsock_sockets")
    assert len(outcomes) == 8
    assert set(outcomes.values()) == {"EPERM"}, outcomes


def test_v01_v02_v03_nobody_inside_reaches_a_vsock_port(hostile: Hostile) -> None:
    """The machine listens on its supervisor's port, and the parent answers on none of these."""
    outcomes = hostile.run("vsock_peers")
    assert len(outcomes) == 15
    assert set(outcomes.values()) == {"EPERM"}, outcomes


def test_a01_k09_k10_devices(hostile: Hostile) -> None:
    outcomes = hostile.run("devices")
    listed = set(outcomes.pop("listed"))
    assert not listed & {"nsm", "vsock", "mem", "kmsg", "hwrng", "port", "console"}
    assert not listed & {"ttyS0", "ttyAMA0"}
    assert {"null", "zero", "urandom"} <= listed
    assert outcomes.pop("mknod") == "EPERM"
    assert set(outcomes.values()) <= {"ENOENT", "EACCES"}, outcomes


def test_section_c_sysctls(hostile: Hostile) -> None:
    found = hostile.run("sysctls")
    if hostile.where == "notebook":
        assert {name: found[name] for name in _SYSCTLS} == _SYSCTLS
        assert found["kernel/unprivileged_bpf_disabled"] in ("1", "2")
    written = {name: value for name, value in found.items() if name.endswith(" written")}
    assert len(written) == 13 and set(written.values()) <= _REFUSED, written


def test_k01_k04_s07_kernel_doors(hostile: Hostile) -> None:
    found = hostile.run("kernel_doors")
    assert set(found.values()) <= {*_REFUSED, "EMPTY"}, found


def test_no_network_interface_but_loopback(hostile: Hostile) -> None:
    assert hostile.run("interfaces")["lines"] in (["lo"], "ENOENT", "EACCES")


def test_v04_one_port_of_the_machine_answers(vm: VmHome) -> None:
    device = vm.runtime / "vm" / "vsock.sock"
    connect(f"hybrid:{SUPERVISOR_PORT}:{device}").close()
    for port in (1, 22, 80, 900, 902, 1023, 1024, 5006, 9000, 65535):
        with pytest.raises(TransportError, match="nobody listens"):
            connect(f"hybrid:{port}:{device}")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"x" * 600])
def test_v07_what_is_no_message_over_real_vsock(vm: VmHome, payload: bytes) -> None:
    with connect(f"hybrid:{SUPERVISOR_PORT}:{vm.runtime / 'vm' / 'vsock.sock'}") as sock:
        sock.settimeout(30)
        sock.sendall(encode_frame(payload))
        assert hangs_up(sock)
    assert vm.status()["state"] == "up"


def test_the_machine_reaches_nothing_of_the_parent_but_the_heartbeat(vm: VmHome) -> None:
    """A connection of its own to port P arrives at the socket with that number, or nowhere."""
    sockets = {path.name for path in (vm.runtime / "vm").iterdir()}
    assert sockets == {"device.sock", "vsock.sock", f"vsock.sock_{HEARTBEAT_PORT}"}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(vm.runtime / "vm" / f"vsock.sock_{HEARTBEAT_PORT}"))
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert hangs_up(sock)


def test_nothing_of_a_secret_is_on_the_console(vm: VmHome) -> None:
    console = vm.console()
    assert "listening on vsock:901" in console
    for marker in ("PRIVATE KEY", "secret_access_key", "weights"):
        assert marker not in console
