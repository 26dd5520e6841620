"""The edge of the command line: however a command ends, it leaves one line and an exit code, and no traceback.

Light on purpose: the commands' imports take half a second, and Ctrl-C is heard from the first line on. Even `typing` would take longer
than this module.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """A command has run, and the process ends with its exit code: 0 done, 1 found something wrong, 2 usage, 3 cannot reach."""
    if is_ours := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # nothing has begun: no import is to be unwound
    try:
        from ops.cli.failures import explained, traceback_of
        from ops.cli.output import discard_output, open_channels, say
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    open_channels()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one guard: what no command foresaw ends here
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()
        failure = explained(error)
        if shown := traceback_of(error):
            sys.stderr.write(shown)
        say(f"payrelay: {failure.message}")
        for line in failure.details:
            say(f"  {line}")
        code = failure.exit_code
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Return a command's exit code; what it raises is raised."""
    from ops.cli.failures import require_text

    require_text(arguments)
    if arguments[:1] == ["worker"] and not any(argument.startswith("-") for argument in arguments):
        from ops.cli.worker import run  # nothing is to be parsed, and a worker pays for no parser

        return run(arguments[1:])
    if arguments == ["status"]:  # as above: the parser imports pydantic for options
        return _status()
    from ops.cli.app import app

    code = app(args=arguments, prog_name="payrelay", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _status() -> int:
    import typer

    from ops.cli.status import status

    try:
        status()
    except typer.Exit as end:
        return end.exit_code
    return 0


def __getattr__(name: str) -> Any:
    """`app` is there for whoever imports it from here; it is imported only then."""
    if name == "app":
        from ops.cli.app import app

        return app
    raise AttributeError(name)


if __name__ == "__main__":
    main()
