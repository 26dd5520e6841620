"""A processor with nothing to deliver asks its database every few seconds for an answer, and says so if none comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from consumers.delivery.processor import error_line

if TYPE_CHECKING:
    from consumers.runtime.app import PipelineApp

ASK_S = 3.0
"""How often, and for how long an answer is waited for before the condition says that there is none."""


async def watch_database(app: PipelineApp) -> None:
    """The consumer's condition says whether its database answers, until the app stops. A delivery under way speaks for itself."""
    loop = asyncio.get_running_loop()
    while not app.should_stop:
        await app.sleep(ASK_S)
        if app.busy_since.is_busy:
            continue
        answer = loop.run_in_executor(app.database, _ask, app)
        # The thread is the delivery's too: no second question joins the queue.
        while not answer.done() and not app.should_stop:
            await asyncio.wait({answer}, timeout=ASK_S)
            if not answer.done():
                app.condition.tell(app.consumer_name, "waiting for the database: it does not answer")
        if answer.done():
            app.condition.tell(app.consumer_name, answer.result())


def _ask(app: PipelineApp) -> str:
    """Return the consumer's condition: empty if the database answers."""
    try:
        with app.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        return f"waiting for the database: {error_line(error)}"
    return ""
