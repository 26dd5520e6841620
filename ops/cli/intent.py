"""What was planned, and is it meant? A command that changes money, offsets, topics or many rows shows its plan, and asks here."""

from __future__ import annotations

from ops.cli.output import confirm, say


def is_meant(plan: str = "", *, execute: bool, yes: bool, does: str = "does it", question: str = "") -> bool:
    """Return whether a plan that is on the screen is to be carried out: with `--execute`, and once the operator has said yes.

    Without `--execute` the last line says what would have been done, and what `--execute` does. Without a question nobody is
    asked. Raises Abort where the operator says no.
    """
    if not execute:
        say(f"{plan}; nothing was done: --execute {does}" if plan else f"nothing was done: --execute {does}")
        return False
    if question and not yes:
        confirm(question)
    return True
