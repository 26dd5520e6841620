"""Where a rebuild may begin: at the logs' beginning where they are whole, else at a checkpoint that their messages follow on.

A checkpoint is the consumer's rows and positions, copied in one snapshot; its balances are held against its entries when it is
taken and whenever it is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, text

from consumers.delivery.processor import Processor
from consumers.effects import Rebuild
from ops.delivery.outcomes import progress_of
from ops.delivery.registry import processor_of
from ops.rebuild.rebuildable import rebuild_of, sums
from ops.rebuild.schemas import Made, copy_rows, find_schemas, make_schema
from outbox.clock import utc_now
from outbox.errors import Refused, UnknownName
from outbox.inbox import Log, behind_horizons
from outbox.migrate import owner_engine
from outbox.quoting import quoted
from outbox.settings import Settings

NAMED = 5


def usable_checkpoint(
    connection: Connection,
    consumer: str,
    logs: Mapping[Log, range],
    kept: Mapping[Log, int],
    *,
    named: str = "",
) -> Made | None:
    """Return the checkpoint to begin from; None for the beginning of the logs, which are whole then. Reads only.

    Raises Refused where neither will do: a part of a history is not compared as if it were all of it.
    """
    gone = sorted(str(log) for log in kept if log not in logs)
    if beyond := [str(log) for log, position in kept.items() if log in logs and position > logs[log].stop]:
        raise Refused(
            f"{', '.join(beyond)} ends before the position of {consumer}: it has lost messages, so no checkpoint can be compared with it"
        )
    checkpoints = [
        made for made in find_schemas(connection) if made.purpose == "checkpoint" and made.consumer == consumer
    ]
    if named:
        if not (checkpoints := [made for made in checkpoints if made.name == named]):
            raise UnknownName(
                f"{named!r} is no checkpoint of {consumer}. The checkpoints are shown by: payrelay replay drop"
            )
    elif not gone and not (cut := [f"{log} begins at {span.start}" for log, span in logs.items() if span.start]):
        return None
    for made in sorted(checkpoints, key=lambda made: made.at, reverse=True):
        stands = progress_of(connection, made.name, consumer)
        joins = all(logs[log].start <= stands.get(log, 0) <= kept.get(log, 0) for log in logs)
        if joins and all(stands.get(log) == position for log, position in kept.items() if log not in logs):
            return made
    if named:
        raise Refused(
            f"checkpoint {named} cannot be continued from: messages after it are gone from the logs, or it is ahead of the live rows"
        )
    if gone:
        raise Refused(
            f"{consumer} has read {', '.join(gone)} as it was before its topic was made again. Those messages are gone, and what "
            f"they did cannot be rebuilt. To be able to rebuild from now on: payrelay replay checkpoint {quoted(consumer)}"
        )
    raise Refused(
        f"the history is not whole: {', '.join(cut[:NAMED])}. A rebuild of the rest would report every older row as an "
        f"error. A rebuild can start from a checkpoint. To take one for the next time: payrelay replay checkpoint {quoted(consumer)}"
    )


def take_checkpoint(settings: Settings, consumer: str, *, processor: Processor | None = None) -> Made:
    """The consumer's rows and positions are kept, as they belong together, in a schema whose name is returned.

    Own transaction, as the owner: one snapshot, live goes on. Raises Refused where the balances are not what the entries add up to.
    """
    chosen = processor or processor_of(settings, consumer)
    subject, at = rebuild_of(chosen), utc_now()
    made = Made(
        name=f"{chosen.service}_checkpoint_{at:%Y%m%d_%H%M%S_%f}",
        service=chosen.service,
        consumer=consumer,
        purpose="checkpoint",
        at=at,
    )
    with owner_engine(settings).connect().execution_options(isolation_level="REPEATABLE READ") as owner, owner.begin():
        require_past_read(owner, chosen.service, consumer)

        def fill() -> None:
            copy_rows(owner, made.name, chosen.service, (*subject.tables, *subject.kept))
            copy_rows(owner, made.name, chosen.service, ("inbox", "progress", "parked"), consumer=consumer)

        make_schema(owner, made, fill=fill)
        verified(owner, subject, made.name)
    return made


def require_past_read(connection: Connection, service: str, consumer: str) -> None:
    """Return if the consumer's inbox alone says what it has applied; raises Refused while it still reads what is older."""
    if topics := behind_horizons(connection, consumer, schema=service):
        raise Refused(
            f"{consumer} has yet to read what is older than its inbox in {', '.join(sorted(topics))}: let it catch up; "
            "once it has, payrelay upkeep notes that"
        )


def verified(connection: Connection, subject: Rebuild, schema: str) -> None:
    """Return if every balance is what its account's entries add up to; else raises Refused. Reads only."""
    kept = {row.account: row.amount for row in connection.execute(text(subject.balances.format(schema=schema)))}
    entered = dict(sums(connection, subject.entries, schema))
    off = [
        f"{account} is {kept.get(account, 0)}, its entries {entered.get(account, 0)}"
        for account in sorted(kept.keys() | entered.keys())
        if kept.get(account, 0) != entered.get(account, 0)
    ]
    if off:
        raise Refused(
            f"{schema} is no sound beginning, because its own rows disagree: {'; '.join(off[:NAMED])}{' …' if len(off) > NAMED else ''}"
        )
