"""payrelay console, console user."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ops.cli.context import current_settings, local_folder
from ops.cli.output import say
from ops.console.users import Role

app = typer.Typer()


@app.callback(invoke_without_command=True)
def console(context: typer.Context) -> None:
    """Serve the web console until SIGTERM or Ctrl-C.

    It shows what waits, what failed and what was sent, and lets operators act on it. On a local stack, the first start creates a viewer and an operator and prints their passwords, once.
    """
    from ops.console.app import listen, serve
    from ops.console.users import users_of

    if context.invoked_subcommand:
        return
    settings = current_settings()
    with listen(settings) as listening:  # before passwords are made, which are shown only once
        users, passwords = users_of(settings, local_folder())
        for name, password in passwords.items():
            say(f"made for {name}, and shown only now: {password}")
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        serve(settings, users, listening, lambda: say(f"the console is at http://{shown}:{port}"))


@app.command()
def user(
    name: Annotated[
        str, typer.Argument(help="the user's name: lower-case letters and digits, with single _ between them")
    ],
    role: Annotated[Role, typer.Option("--role", help="a viewer can look, an operator can also act")] = Role.VIEWER,
) -> None:
    """Print the setting that lets a person sign in to the console. Asks for the password, or reads it from standard input."""
    from ops.console.passwords import LENGTH_MIN, hashed
    from ops.console.users import parse_users

    if sys.stdin.isatty():
        password: str = typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < LENGTH_MIN:
        raise typer.BadParameter(f"the password is too short: it must have {LENGTH_MIN} characters or more")
    said = f"{role.value}:{hashed(password)}"
    parse_users({name: said})
    sys.stdout.write(f"PAYRELAY_CONSOLE_USERS__{name.upper()}='{said}'\n")
