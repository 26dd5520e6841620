"""Whatever fails while the connector is stopped, it is resumed. No servers: a client that records the calls it gets."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from connect.source_offsets import Exported
from ops.pipeline import repair, source_offsets
from outbox.errors import NotReady, Unreachable
from outbox.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RecordingClient:
    """Records the calls it gets; one of them fails, as often as asked for."""

    def __init__(self, fails_at: str, times: int = 1) -> None:
        self.calls: list[str] = []
        self.left = {fails_at: times}

    def __getattr__(self, name: str) -> Any:
        def tell(*_: Any, **__: Any) -> None:
            if self.left.get(name, 0) > 0:
                self.left[name] -= 1
                raise Unreachable(f"no answer to {name}")
            self.calls.append(name)

        return tell


@pytest.mark.parametrize("wanted", [None, Exported(connector="c", offsets=[])])
@pytest.mark.parametrize("fails_at", ["stop", "wait_stopped", "resume"])
def test_a_reset_that_fails_leaves_no_connector_stopped(
    fails_at: str, wanted: Exported | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = RecordingClient(fails_at)
    monkeypatch.setattr(source_offsets, "ConnectClient", lambda _: client)
    for name in ("require_harmless", "standing", "apply_connector"):
        monkeypatch.setattr(source_offsets, name, lambda *_, **__: None)
    monkeypatch.setattr(source_offsets, "plan_reset", lambda *_, **__: SimpleNamespace(since={}))
    monkeypatch.setattr(repair, "apply_connector", lambda *_, **__: [])
    with pytest.raises(Unreachable, match=f"no answer to {fails_at}"):
        source_offsets.reset(Settings(), wanted, clock=lambda: NOW, say=lambda _: None)
    assert client.calls[-1] == "resume", "the connector stays stopped"


def test_an_emission_that_fails_before_it_begins_leaves_no_connector_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise Unreachable("no answer")

    client, planned = RecordingClient(""), repair.Repair(since={}, missing=set(), rows=0, minutes=0)
    monkeypatch.setattr(repair, "apply_connector", fails)
    with pytest.raises(Unreachable):
        repair.emit_missing(client, Settings(), planned, say=lambda _: None)  # type: ignore[arg-type]
    assert client.calls == ["resume"], "the connector stays stopped"


def test_where_the_connector_cannot_be_resumed_the_command_that_does_is_named() -> None:
    client = RecordingClient("resume", times=2)
    with (
        pytest.raises(NotReady, match=r"no answer to stop.*payrelay connect resume"),
        repair.resumed_after_failure(
            client,
            Settings(),  # type: ignore[arg-type]
        ),
    ):
        raise Unreachable("no answer to stop")
