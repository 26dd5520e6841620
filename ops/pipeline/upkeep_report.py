"""A round of upkeep as it is shown and kept: apart from what does it, so that `payrelay status` starts at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

REPORT = "upkeep.json"
"""The last round's report, in a stack's folder."""


@dataclass(kw_only=True)
class Upkeep:
    """What a round did, and what it left, and why."""

    at: str
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Days past their retention, each with what still needs it."""
    left: dict[str, int] = field(default_factory=dict)
    """Days past their retention that nothing needs and the round has left, by table."""
    retried: dict[str, int] = field(default_factory=dict)
    """Parked events that were ahead of the clock and are applied, by consumer."""
    purged: dict[str, int] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    """Consumers, with a topic, that have read what was older than their inbox when they began it."""
    errors: dict[str, str] = field(default_factory=dict)
    """What went wrong, by place; the next round tries again."""

    def rows(self, *, planned: bool = False) -> list[dict[str, str]]:
        """Return the report line by line."""
        return [
            *({"what": name, "outcome": "made"} for name in self.made),
            *({"what": name, "outcome": "would be dropped" if planned else "dropped"} for name in self.dropped),
            *({"what": name, "outcome": f"kept: {reason}"} for name, reason in self.kept.items()),
            *({"what": name, "outcome": f"left: {count} more days are due"} for name, count in self.left.items()),
            *(
                {"what": name, "outcome": f"{count} applied that were ahead of the clock"}
                for name, count in self.retried.items()
            ),
            *({"what": name, "outcome": f"{count} purged"} for name, count in self.purged.items() if count),
            *({"what": name, "outcome": "has read what was older than its inbox"} for name in self.passed),
            *({"what": name, "outcome": f"failed: {error}"} for name, error in self.errors.items()),
        ]

    def summary(self) -> str:
        """Return the report in one line.

        >>> Upkeep(at="", made=["a", "b"], kept={"c": "in use", "d": "in use"}, errors={"e": "no lock"}).summary()
        'made 2, dropped 0, purged 0, kept 2 (in use); failed: e: no lock'
        """
        reasons = f" ({'; '.join(Counter(self.kept.values()))})" if self.kept else ""
        failed = "".join(f"; failed: {place}: {error}" for place, error in self.errors.items())
        done = f"made {len(self.made)}, dropped {len(self.dropped)}, purged {sum(self.purged.values())}"
        left = f", left {sum(self.left.values())} (payrelay upkeep --catch-up)" if self.left else ""
        return f"{done}, kept {len(self.kept)}{reasons}{left}{failed}"
