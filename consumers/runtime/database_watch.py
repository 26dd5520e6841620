"""A processor with nothing to deliver asks now and then whether its database answers, and says so where it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from consumers.delivery.loop import told

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
        asked = loop.run_in_executor(app.database, _ask, app)
        while (
            not asked.done() and not app.should_stop
        ):  # the thread is the delivery's too: no second question joins the queue
            await asyncio.wait({asked}, timeout=ASK_S)
            if not asked.done():
                app.condition.tell(app.consumer_name, "waiting for the database: it does not answer")
        if asked.done():
            app.condition.tell(app.consumer_name, asked.result())


def _ask(app: PipelineApp) -> str:
    """Return the consumer's condition: empty where the database answers."""
    try:
        with app.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        return f"waiting for the database: {told(error)}"
    return ""
