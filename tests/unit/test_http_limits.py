"""Which connection makes room for another."""

from __future__ import annotations

from outbox.http_limits import Connections, Limits


class Held:
    """A connection as the bounds see it."""

    def __init__(self) -> None:
        self.dropped = ""

    def drop(self, reason: str) -> None:
        self.dropped = reason

    def expire(self, now: float) -> None:
        raise NotImplementedError


def test_who_waits_longest_makes_room_and_requests_in_work_never_do() -> None:
    limits = Limits(connections=4, per_address=2, requests=2, head_s=1, body_s=1, idle_s=1)
    connections, held = Connections(limits), [Held() for _ in range(8)]
    for one in held[:4]:
        assert connections.admit(one)
    connections.works(held[0])
    connections.waits(held[1])
    assert connections.admit(held[4])
    assert [one.dropped for one in held[:5]] == ["", "", "room", "", ""]
    for one in (held[1], held[3], held[4]):
        connections.works(one)
    assert connections.in_work == 4
    assert not connections.admit(held[5])
    assert all(
        connections.count(one, address) for one, address in zip(held[:2], ("2001:db8::1", "2001:db8::2"), strict=True)
    )
    assert not connections.count(held[3], "2001:db8::3"), "both of its network are in work"
    connections.waits(held[1])
    assert connections.count(held[3], "2001:db8::3")
    assert held[1].dropped == "address"
    for one in held:
        connections.remove(one)
    assert (connections.open, connections._waiting, connections._held, connections._holders) == (set(), {}, {}, {})
