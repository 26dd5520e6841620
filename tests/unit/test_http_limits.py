"""Which connection makes room for another."""

from __future__ import annotations

import asyncio

from outbox.http.limits import ConnectionLimits, Connections
from outbox.http.protocol import SWEEP_S, _sweep


class FakeConnection:
    """A connection as the bounds see it."""

    def __init__(self) -> None:
        self.dropped = ""

    def drop(self, reason: str) -> None:
        self.dropped = reason

    def expire(self, now: float) -> None:
        raise NotImplementedError


def test_who_waits_longest_makes_room_and_requests_in_work_never_do() -> None:
    limits = ConnectionLimits(connections=4, per_address=2, requests=2, head_s=1, body_s=1, idle_s=1)
    connections, held = Connections(limits), [FakeConnection() for _ in range(8)]
    for connection in held[:4]:
        assert connections.admit(connection)
    connections.works(held[0])
    connections.waits(held[1])
    assert connections.admit(held[4])
    assert [connection.dropped for connection in held[:5]] == ["", "", "room", "", ""]
    for connection in (held[1], held[3], held[4]):
        connections.works(connection)
    assert connections.in_work == 4
    assert not connections.admit(held[5])
    assert all(
        connections.count(connection, address)
        for connection, address in zip(held[:2], ("2001:db8::1", "2001:db8::2"), strict=True)
    )
    assert not connections.count(held[3], "2001:db8::3"), "both of its network are in work"
    connections.waits(held[1])
    assert connections.count(held[3], "2001:db8::3")
    assert held[1].dropped == "address"
    for connection in held:
        connections.remove(connection)
    assert (connections.open, connections._waiting, connections._held, connections._holders) == (set(), {}, {}, {})


class WatchedConnection(FakeConnection):
    """A connection that knows when it was looked at, and may have something wrong with it."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self.broken = broken
        self.looks: list[float] = []

    def expire(self, now: float) -> None:
        self.looks.append(now)
        if self.broken:
            raise RuntimeError("broken")


def test_a_connection_that_cannot_be_closed_leaves_the_others_their_deadlines() -> None:
    limits = ConnectionLimits(connections=4, per_address=4, requests=2, head_s=1, body_s=1, idle_s=1)
    connections, broken, sound = Connections(limits), WatchedConnection(broken=True), WatchedConnection(broken=False)
    assert connections.admit(broken)
    assert connections.admit(sound)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(_sweep, connections, loop)
        await asyncio.sleep(10 * SWEEP_S)

    asyncio.run(main())
    assert len(sound.looks) > 1, "nobody looks at deadlines any more"
    assert len(broken.looks) == 1
