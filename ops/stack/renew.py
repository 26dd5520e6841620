"""`payrelay up` on a running stack: what the code calls for is applied, and what runs older code is started again."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from connect.apply import apply_connector
from connect.client import ConnectClient
from ops.kafka.topics import apply_topics
from ops.stack.code import CODE, named, outdated_files, outdated_parts
from ops.stack.control import down, restart
from ops.stack.state import StackFolder
from outbox.migrate import migrate, owner_engine
from outbox.settings import Settings


def end_older_supervisor(folder: StackFolder) -> list[str]:
    """No supervisor runs code that is no longer here: one that did has ended, and its parts with it. Returns what was done."""
    code = folder.read(CODE)
    if not folder.is_up() or (code and not (changed := outdated_files(code))):
        return []
    why = named(changed) if code else "of a version that kept no note of its code"
    down(folder)
    return [f"the whole stack is started again: its supervisor ran older code ({why})"]


def renew(folder: StackFolder) -> list[str]:
    """The running stack has this version's schema, topics and connector, and no part of it runs older code; returns what was changed."""
    settings = folder.settings()
    changes = [*_migrated(settings), *(f"topic: {line}" for line in apply_topics(settings, execute=True))]
    changes += [
        f"connector: {key} is {new}, was {old}"
        for key, old, new in apply_connector(ConnectClient(settings.connect_url), settings)
    ]
    known = {state.name for state in folder.states()}
    if older := [part for part in outdated_parts(folder.read(CODE)) if part in known]:
        restart(folder, older)
        changes.append(f"restarted, for they ran older code: {', '.join(older)}")
    return changes


def _migrated(settings: Settings) -> list[str]:
    before = _revision(settings)
    migrate(settings, today=datetime.now(UTC).date())
    after = _revision(settings)
    return [] if before == after else [f"schema: migrated from {before or 'nothing'} to {after}"]


def _revision(settings: Settings) -> str:
    """Return the last migration that the database has; empty for none."""
    try:
        with owner_engine(settings).connect() as connection:
            return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none() or "")
    except ProgrammingError:
        return ""
