"""A stand-in for what runs Nitro enclaves: machines, each as long as its client's connection lasts.

It serves a Unix socket in the stand-in's directory. One line of JSON asks for a machine, the
heartbeat's byte says that it booted, the end of the connection switches it off.
Usage: python -m tests.support.nitro_hardware DIRECTORY
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

from enclave_parent_gateway.service_manager import say_ready
from tests.support.nitro_machine import HARDWARE, HEARTBEAT, StandInMachine

_MOST_BYTES = 64 * 1024


def _serve(directory: Path, connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as lines:
        machine = StandInMachine(directory, **json.loads(lines.readline(_MOST_BYTES)))

        def wanted() -> bool:
            try:
                return connection.recv(1, socket.MSG_DONTWAIT) != b""
            except BlockingIOError:
                return True
            except OSError:
                return False

        machine.run(lambda: connection.sendall(HEARTBEAT), wanted)


def main() -> None:
    """Serve until killed."""
    directory = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # machines need no farewell
    path = directory / HARDWARE
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        say_ready()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    _serve(directory, connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
