"""Start a program that cannot outlive whoever started it: python tie.py MODE SIGNAL PARENT_PID COMMAND…

MODE is `keep` (the user as it is), `namespace` (root as user 1000 of a user namespace: PostgreSQL refuses root) or
`nobody` (root gives up to the unprivileged user). Only the standard library, so that it starts in milliseconds.
"""

import ctypes
import os
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NOBODY = 65534
NO_NAMESPACE = 77
"""Exit code where the kernel lets us make no user namespace."""


def die_with_parent(signum: int, parent: int) -> None:
    """The calling process gets the signal when the thread that started it ends. Linux; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(1)


def enter_user_namespace() -> None:
    """The calling process is user 1000 of a namespace of its own; files of root stay its own."""
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER) != 0:
        raise SystemExit(NO_NAMESPACE)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("1000 0 1")
    Path("/proc/self/gid_map").write_text("1000 0 1")


def become_nobody() -> None:
    """The calling process is the unprivileged user for good."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def main() -> None:
    mode, signum, parent, *command = sys.argv[1:]
    if mode == "namespace":
        enter_user_namespace()
    elif mode == "nobody":
        become_nobody()
    die_with_parent(int(signum), int(parent))  # last: a change of user takes the death signal back
    os.execvp(command[0], command)  # noqa: S606 - that is what this program is for


if __name__ == "__main__":
    main()
