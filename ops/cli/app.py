"""`payrelay` as typer runs it: each command's module is imported when the command is called."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ops.cli.commands import COMMANDS, GROUP, PASSED_ON


def loaded(name: str) -> Any:
    """Return a command, with its module imported. Raises KeyError where no command has this name."""
    command = COMMANDS.get(name)
    if command is not None and command.module:
        target = getattr(import_module(command.module), command.attribute)
    elif (target := _registered(name)) is None:
        raise KeyError(name)
    single = typer.Typer()
    if isinstance(target, typer.Typer):
        single.add_typer(target, name=name)
    else:
        single.command(name, context_settings=PASSED_ON.get(name))(target)
    return typer.main.get_group(single).commands[name]


def _registered(name: str) -> Any:
    """Return a command that another package has registered; None where none has."""
    from importlib.metadata import entry_points  # 40 ms

    return next((point.load() for point in entry_points(group=GROUP, name=name)), None)


@contextmanager
def _without_markdown() -> Generator[None]:
    """rich's Markdown is not imported meanwhile: typer does so for a mode that is not ours, in a fifth of the time that help takes."""
    name = "rich.markdown"
    if name in sys.modules or "typer.rich_utils" in sys.modules:
        yield
        return
    sys.modules[name] = stub = ModuleType(name)
    stub.__dict__["Markdown"] = None
    try:
        import typer.rich_utils  # noqa: F401

        yield
    finally:
        del sys.modules[name]


class LazyCommands(MutableMapping[str, Any]):
    """Commands by name: the names are there at once, a command when it is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = loaded(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands stay")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Payrelay(TyperGroup):
    """The group of all commands; its help and its completion know them by the table alone."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = LazyCommands()
        self._summaries_only = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; while help is written, what help says of it."""
        if self._summaries_only and cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name].summary)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click calls it so
        """Return every command's name."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help is written."""
        with self._summaries(), _without_markdown():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what the shell may go on with."""
        with self._summaries():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _summaries(self) -> Generator[None]:
        self._summaries_only = True
        try:
            yield
        finally:
            self._summaries_only = False


app = typer.Typer(name="payrelay", cls=Payrelay, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from ops.cli.output import print_line

        print_line(f"payrelay {version('payrelay')}")
        raise typer.Exit


@app.callback()
def payrelay(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """An event-driven payment pipeline that never loses money and never moves it twice."""
