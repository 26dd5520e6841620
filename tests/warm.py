"""`payrelay` without the second that its imports take: a process that has them forks one for each command, with its channels.

python -m tests.warm FOLDER     serves FOLDER/payrelay until it is ended
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import typer

from ops.stack.parts import tied
from tests.waiting import eventually

COMMAND = """#!{python} -IS
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as warm:
    warm.connect({address!r})
    request = json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(warm, [len(request).to_bytes(4)], [0, 1, 2])
    warm.sendall(request)
    sys.exit(int(warm.recv(8) or b"70"))
"""


@contextmanager
def warm_commands(folder: Path, root: Path) -> Generator[Path]:
    """Give a folder for the PATH: its `payrelay` is the one of this checkout."""
    address = folder / "socket"
    command = folder / "payrelay"
    command.write_text(COMMAND.format(python=Path(sys.executable).resolve(), address=str(address)))
    command.chmod(0o755)
    process = subprocess.Popen(
        tied([sys.executable, "-m", "tests.warm", str(address)]), cwd=root, stdin=subprocess.DEVNULL
    )
    try:
        eventually(address.exists, what="the warm process listens")
        yield folder
    finally:
        process.terminate()
        process.wait()


def serve(address: str) -> None:
    """Every command that comes in has a process of its own."""
    import ops.cli.failures
    import ops.offsets.plan  # noqa: F401 - for its imports
    from ops.cli.app import app

    list(typer.main.get_command(app).commands.values())  # type: ignore[attr-defined]

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        scratch = f"{address}.new"
        listening.bind(scratch)
        listening.listen()
        Path(scratch).rename(address)
        while True:
            asking, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                _answer(asking)
                os._exit(0)
            asking.close()


def _answer(asking: socket.socket) -> None:
    """The command has run, and its exit code has been sent back."""
    length, channels, _, _ = socket.recv_fds(asking, 4, 3)
    request = asking.recv(int.from_bytes(length), socket.MSG_WAITALL)
    pid = os.fork()
    if pid == 0:
        for number, channel in enumerate(channels):
            os.dup2(channel, number)
        os._exit(_run(*msgspec.json.decode(request)))
    _, status = os.waitpid(pid, 0)
    asking.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _run(arguments: list[str], environment: dict[str, str], folder: str) -> int:
    from ops.cli.main import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(sys.argv[1])
