"""Dashboard and alert rules ask for metrics that exist, and name commands that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.cli.metrics_reference import rows
from ops.pipeline.checks import LAG_S_MAX, RETAINED_BYTES_MAX
from outbox.partitions import DAYS_AHEAD_MIN

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "ops/monitoring/dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "ops/monitoring/alerts.yaml").read_text())["groups"][0]["rules"]
EXPRESSIONS = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"] if panel["type"] != "row"} | {
    rule["alert"]: [rule["expr"]] for rule in RULES
}  # fmt: skip

WORDS = {"by", "without", "or", "and", "unless", "on", "ignoring", "bool", "group_left", "group_right", "offset"}
SCRAPERS = {"up"}
"""Made by Prometheus itself."""


def metrics_of(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression asks for.

    Names that are no function, no keyword, and in no label list, matcher, string or range.
    """
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-z_:][a-z0-9_:]*\b(?!\s*\()", bare)) - WORDS


def exported() -> set[str]:
    names = set()
    for name, kind, *_ in rows():
        names |= {name + suffix for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    return names


@pytest.mark.parametrize(
    ("expression", "metrics"),
    [
        ('up{job="a b"} == 0', {"up"}),
        ("max by (service) (outbox_oldest_age_seconds) > 60", {"outbox_oldest_age_seconds"}),
        ("histogram_quantile(0.5, sum by (le) (rate(x_seconds_bucket[5m])))", {"x_seconds_bucket"}),
        ("a / on (b) c or absent(d) or vector(0)", {"a", "c", "d"}),
    ],
)
def test_metrics_of_an_expression(expression: str, metrics: set[str]) -> None:
    assert metrics_of(expression) == metrics


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_every_expression_asks_for_metrics_that_exist(title: str) -> None:
    for expression in EXPRESSIONS[title]:
        metrics = metrics_of(expression)
        assert metrics
        assert {name for name in metrics if not name.startswith("process_")} <= exported() | SCRAPERS


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set().union(*(metrics_of(expression) for expressions in EXPRESSIONS.values() for expression in expressions))
    for name, kind, *_ in rows():
        wanted = {name + "_bucket", name + "_count"} if kind == "histogram" else {name}
        assert wanted & shown, f"{name} is exported and not looked at"


def test_dashboard_has_a_source_to_choose_and_no_panel_is_empty() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource"] == [
        "datasource"
    ]
    assert DASHBOARD["uid"] == "payrelay"
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel["targets"]:
            assert 'job="$job"' in target["expr"]
            assert target["legendFormat"]
    places = [(p["gridPos"]["y"] + y, p["gridPos"]["x"] + x) for p in DASHBOARD["panels"] for y in range(p["gridPos"]["h"]) for x in range(p["gridPos"]["w"])]  # fmt: skip
    assert len(places) == len(set(places)), "panels overlap"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_is_wrong_and_which_command_mends_it(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    reference = (ROOT / "docs/reference/cli.md").read_text()
    commands = re.findall(r"`payrelay ([a-z-]+(?: [a-z-]+)*)", rule["annotations"]["description"])
    assert commands
    known = set(re.findall(r"^## payrelay (.+)$", reference, re.MULTILINE))
    for command in commands:
        words = command.split()
        assert {" ".join(words[:2]), words[0]} & known, command


def test_limits_are_doctors() -> None:
    limits = {rule["alert"]: float(re.split(r"[<>]=?", rule["expr"])[1].split()[0]) for rule in RULES if re.search(r"[<>]", rule["expr"])}  # fmt: skip
    assert limits["PayrelayLag"] == limits["PayrelayOutboxOld"] == LAG_S_MAX
    assert limits["PayrelaySlotRetainsWal"] == RETAINED_BYTES_MAX
    assert limits["PayrelayDaysAhead"] == DAYS_AHEAD_MIN
