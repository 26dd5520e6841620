"""Rows of a notifier: receivers, notifications and their attempts, rules and lanes. The role's search_path decides whose they are.

receiver             where and how to tell a merchant
notify_queue         a queue's rule, success word and limits
notify_record        notifications: one row an event; states: docs/states.md
notify_lane          a receiver's part of a queue: when it is worth a look, its breaker, its pause
notify_wake          something of a lane is due then; the next claim takes it in
notify_record_log    every attempt, as it went
notify_postponement  why an attempt was not made when it was planned, and its new time
notify_act           what is to be done with everything that matches, and how far that has come
notify_audit         who sent again, paused, resumed or changed a rule, and why; insert-only
"""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Double, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

receiver = Table(
    "receiver",
    metadata,
    Column("merchant_no", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("old_secret", Text),
    Column("old_secret_until", DateTime(timezone=True)),
)

notify_queue = Table(
    "notify_queue",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("success_word", Text, nullable=False),
    Column("in_flight_max", Integer, nullable=False),
    Column("receiver_in_flight_max", Integer, nullable=False),
    Column("breaker_failures", Integer, nullable=False),
    Column("breaker_first_s", Double, nullable=False),
    Column("breaker_cap_s", Double, nullable=False),
    Column("retry_after_cap_s", Double, nullable=False),
    Column("private_receivers", Boolean, nullable=False),
)

notify_record = Table(
    "notify_record",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("merchant_no", Text, nullable=False),
    Column("payment_no", Text, nullable=False),
    Column("order_no", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("finished_at", DateTime(timezone=True)),
    Column("rule", Text, nullable=False),
    Column("rule_begin", Integer, nullable=False),
    Column("planned_at", DateTime(timezone=True), nullable=False),
    Column("postponed", Boolean, nullable=False),
    Column("leased_until", DateTime(timezone=True)),
    Column("http_status", Integer),
)

notify_lane = Table(
    "notify_lane",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("merchant_no", Text, primary_key=True),
    Column("ready_at", DateTime(timezone=True)),
    Column("failures", Integer, nullable=False),
    Column("opened_at", DateTime(timezone=True)),
    Column("blocked_until", DateTime(timezone=True)),
    Column("blocked_cause", Text),
    Column("crowded", Boolean, nullable=False),
    Column("freed_at", DateTime(timezone=True)),
    Column("paused_at", DateTime(timezone=True)),
    Column("resumed_at", DateTime(timezone=True)),
    Column("pace", Text),
)

notify_wake = Table(
    "notify_wake",
    metadata,
    Column("queue", Text, nullable=False),
    Column("merchant_no", Text, nullable=False),
    Column("planned_at", DateTime(timezone=True), nullable=False),
)

notify_record_log = Table(
    "notify_record_log",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("record_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("queue", Text, nullable=False),
    Column("merchant_no", Text, nullable=False),
    Column("planned_at", DateTime(timezone=True), nullable=False),
    Column("postponed", Boolean, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False),
    Column("url", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("http_status", Integer),
    Column("response", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("counted", Boolean, nullable=False),
)

notify_postponement = Table(
    "notify_postponement",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("record_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("cause", Text, nullable=False),
    Column("planned_at", DateTime(timezone=True), nullable=False),
    Column("postponed_to", DateTime(timezone=True), nullable=False),
    Column("made_at", DateTime(timezone=True), nullable=False),
)

notify_act = Table(
    "notify_act",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("action", Text, nullable=False),
    Column("wanted", JSONB, nullable=False),
    Column("matched", Integer, nullable=False),
    Column("newest", Uuid, nullable=False),
    Column("last", Uuid),
    Column("done", Integer, nullable=False),
    Column("busy", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("began_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True)),
    Column("stopped_by", Text),
)

notify_audit = Table(
    "notify_audit",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("action", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("merchant_no", Text),
    Column("record_id", Uuid),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("acted_at", DateTime(timezone=True), nullable=False),
    Column("act_id", Uuid),
)
