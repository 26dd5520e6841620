"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

MODULES = ["schemas.money", "schemas.numeric", "outbox.clock", "outbox.condition", "outbox.errors", "outbox.retry", "outbox.partitions", "connect.client",
           "connect.connector", "producers.payments.orders", "producers.payments.fees", "consumers.accounting.entries",
           "consumers.funds.funds", "consumers.notification.guard", "consumers.notification.rules", "consumers.notification.lanes",
           "consumers.notification.sender", "ops.demo.latency", "ops.offsets.peek", "ops.offsets.plan", "ops.offsets.targets", "ops.upkeep", "ops.brokers", "ops.doctor",
           "ops.pipeline.arrival", "ops.pipeline.clocks", "ops.pipeline.past", "ops.pipeline.source", "outbox.slot",
           "ops.reconcile.verdict", "ops.reconcile.published", "ops.reconcile.facts", "ops.cli.reconcile",
           "ops.timeline.facts", "ops.timeline.steps", "tests.howto"]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
