"""The process that serves the workspace: `python -m enclave_kernel.workspace.agent`.

The supervisor starts one for each workspace stream and never reads the stream itself. With root it
gives up everything first: it sees the workspace as its root, has a user of its own, no network and
no other process in sight (docs/spec/workspace.md, "The enclave's end").
"""

import argparse
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from enclave_kernel import process_control
from enclave_kernel.isolation.kernel_syscalls import KERNEL_SYSCALLS
from enclave_kernel.isolation.namespaces import unshare
from enclave_kernel.isolation.privileges import (
    become_user,
    become_user_with,
    bound_capabilities,
    forbid_new_privileges,
    leave_session_keyring,
    lower_limit,
)
from enclave_kernel.isolation.seccomp import compile_filter, install_filter
from enclave_kernel.workspace.server import WorkspaceServer
from enclave_protocol.errors import EnclaveError
from enclave_protocol.workspace.messages import FromParent, decode_from_parent
from enclave_protocol.workspace.stream import MessageStream
from enclave_protocol.workspace.tree import Tree

__all__ = ["main"]

_CAP_DAC_OVERRIDE, _CAP_FOWNER = 1, 3
_MAX_FILES: Final = 512
_QUESTION, _ANSWER = b"?", b"!"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m enclave_kernel.workspace.agent")
    parser.add_argument("--stream", type=int, required=True, help="descriptor of the stream")
    parser.add_argument("--control", type=int, required=True, help="descriptor to the supervisor")
    parser.add_argument("--root", type=Path, required=True, help="the workspace")
    parser.add_argument("--workspace", required=True, help="its name")
    parser.add_argument("--uid", type=int, help="user and group to become; needs root")
    parser.add_argument("--open-modes", action="store_true", help="notebooks own their files")
    return parser.parse_args(argv)


def _put_up_walls(root: Path, uid: int, *, keep_file_rights: bool) -> None:
    """Give up everything but the workspace, for good.

    Raises:
        EnclaveError: A step failed.
        OSError: The same.
    """
    program = compile_filter(KERNEL_SYSCALLS, os.uname().machine)
    unshare(b"workspace", own_pids=True)
    leave_session_keyring()
    for kind, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_NPROC, 1),
    ):
        lower_limit(kind, wanted)
    os.chroot(root)
    os.chdir("/")
    if keep_file_rights:
        # Files of the notebooks are theirs where no mount can show them as its own.
        become_user_with(uid, uid, (_CAP_DAC_OVERRIDE, _CAP_FOWNER))
    else:
        bound_capabilities()
        become_user(uid, uid)
    forbid_new_privileges()
    install_filter(program)


def main(argv: list[str] | None = None) -> int:
    """Serve one stream to its end; return the exit status."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process_control.die_with_parent(parent)
    os.umask(0)
    walled = options.uid is not None
    try:
        if walled:
            _put_up_walls(options.root, options.uid, keep_file_rights=options.open_modes)
            # The change of user cleared it.
            process_control.die_with_parent(parent)
        _serve(options, walled=walled)
    except (EnclaveError, OSError) as error:
        print(f"workspace: {error}", file=sys.stderr)  # noqa: T201 (the supervisor's log)
        return 1
    return 0


def _serve(options: argparse.Namespace, *, walled: bool) -> None:
    control = socket.socket(fileno=options.control)
    control.setblocking(False)
    tree = Tree(Path("/") if walled else options.root)
    asked = False

    def answer() -> None:
        nonlocal asked
        if asked and server.is_synced:
            asked = False
            control.send(_ANSWER)

    def take_question() -> None:
        nonlocal asked
        if control.recv(1) != _QUESTION:
            # The supervisor ended, or gave the workspace to another stream.
            raise SystemExit(0)
        asked = True
        answer()

    stream: MessageStream[FromParent] = MessageStream(
        socket.socket(fileno=options.stream), decode_from_parent
    )
    server = WorkspaceServer(
        tree,
        stream,
        workspace=options.workspace,
        open_modes=options.open_modes,
        chrooted=walled,
        on_synced=answer,
    )
    try:
        server.run(control.fileno(), take_question)
    finally:
        stream.close()
        tree.close()


if __name__ == "__main__":
    sys.exit(main())
