"""A parent instance that systemd runs: the template's user data, run as cloud-init does at boot.

Stand-ins, for what only Amazon Linux and AWS have: dnf, aws and cfn-signal, nitro-cli with the
allocator's service, the hardware, a service of its own as no unit's rule reaches into an enclave,
and the enclave's socket, which the gateway is told of in place of vsock.
Everything else is real: systemctl, sysusers, tmpfiles, the wheels, the units.
"""

import io
import os
import sys
from pathlib import Path

from enclave_protocol.eif import measure_eif
from tests.support.nitro_home import nitro_cli_program, nitro_image
from tests.support.project_wheel import ROOT
from tests.support.systemd_machine import SystemdMachine

__all__ = ["ENCLAVE", "STAND_IN", "install_image", "install_parent", "pcr0_of_image"]

ENCLAVE = "/opt/enclave/bin/enclave"
STAND_IN = Path("/run/nitro_enclaves/stand-in")
_UNITS = ROOT / "infra" / "systemd"
# What the package aws-nitro-enclaves-cli brings: SPECS/aws-nitro-enclaves-cli.spec, %pre and %post,
# and bootstrap/nitro-enclaves-allocator.service.
_DNF = f"""#!/bin/bash
set -e
groupadd --force ne
mkdir -p /etc/nitro_enclaves /var/log/nitro_enclaves
touch /var/log/nitro_enclaves/nitro_enclaves.log
chown -R root:ne /var/log/nitro_enclaves
chmod 0775 /var/log/nitro_enclaves
chmod 0664 /var/log/nitro_enclaves/nitro_enclaves.log
echo "d /run/nitro_enclaves 0775 root ne" >/usr/lib/tmpfiles.d/nitro_enclaves.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/nitro_enclaves.conf
# As its udev rule.
echo "z /dev/nitro_enclaves 0660 root ne" >/usr/lib/tmpfiles.d/udev_nitro_enclaves.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/udev_nitro_enclaves.conf
cat >/usr/lib/systemd/system/nitro-enclaves-allocator.service <<'END'
[Unit]
Description=Nitro Enclaves Resource Allocator
DefaultDependencies=no
After=sysinit.target
[Service]
Type=oneshot
ExecStart=/usr/bin/test -s /etc/nitro_enclaves/allocator.yaml
RemainAfterExit=true
[Install]
WantedBy=multi-user.target
END
ln -sf {os.path.realpath(sys.executable)} /usr/bin/python3.12
"""
_AWS = '#!/bin/bash\ntest "$1 $2" = "s3 cp" && cp /root/tools.zip "$5"\n'
_CFN_SIGNAL = '#!/bin/bash\nfor word; do echo "$word"; done >/root/signal\n'
_STAND_IN_FILES = f"""d {STAND_IN} 0755 enclave enclave -
L {STAND_IN}/root.pem - - - - root/root.pem
"""
_HARDWARE = f"""[Unit]
Before=enclave.service
[Service]
Type=notify
User=enclave
WorkingDirectory={ROOT}
ExecStart={sys.executable} -m tests.support.nitro_hardware {STAND_IN}
[Install]
WantedBy=multi-user.target
"""


def install_parent(machine: SystemdMachine, user_data: str, tools: Path) -> None:
    """Run the user data in a machine that is up; then say where the enclave's sockets are."""
    programs = {
        "/usr/bin/dnf": _DNF,
        "/usr/bin/aws": _AWS,
        "/opt/aws/bin/cfn-signal": _CFN_SIGNAL,
        "/usr/bin/nitro-cli": nitro_cli_program(),
        "/root/user-data": user_data,
    }
    for place, text in programs.items():
        file = machine.path(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    machine.path("/root/tools.zip").write_bytes(tools.read_bytes())
    machine.check("/root/user-data", timeout_s=120)
    signal = machine.path("/root/signal").read_text().splitlines()
    assert signal[:2] == ["--exit-code", "0"], signal
    _point_to_stand_in(machine)


def _point_to_stand_in(machine: SystemdMachine) -> None:
    machine.path("/etc/tmpfiles.d/stand-in.conf").write_text(_STAND_IN_FILES)
    machine.check("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/stand-in.conf")
    machine.path("/etc/systemd/system/stand-in-hardware.service").write_text(_HARDWARE)
    environment = machine.path("/etc/enclave/enclave.env")
    environment.parent.mkdir()
    environment.write_text(f"ENCLAVE_NITRO_STAND_IN={STAND_IN}\n")
    unit = (_UNITS / "enclave-gateway.service").read_text()
    start = unit[unit.index("ExecStart=") : unit.index("Restart=")]
    vsock = "vsock:${ENCLAVE_CID}:901"
    assert vsock in start
    drop_in = machine.path("/etc/systemd/system/enclave-gateway.service.d/stand-in.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(
        f"[Service]\nExecStart=\n{start.replace(vsock, f'unix:{STAND_IN}/${{ENCLAVE_CID}}_901')}"
    )
    machine.check("systemctl", "daemon-reload")
    machine.check("systemctl", "enable", "--now", "stand-in-hardware.service")
    machine.check("systemctl", "restart", "enclave-gateway.service")


def pcr0_of_image(content: bytes = b"first") -> str:
    """Return what `install_image` with the same content installs, in hexadecimal."""
    return measure_eif(io.BytesIO(nitro_image(content)))[0].hex()


def install_image(machine: SystemdMachine, content: bytes = b"first") -> None:
    """Put an image where the runbook puts it, with its command."""
    machine.path("/root/enclave.eif").write_bytes(nitro_image(content))
    machine.check(
        *("install", "--owner", "enclave", "--group", "enclave", "--mode", "0640"),
        *("/root/enclave.eif", "/var/lib/enclave/enclave.eif"),
    )
