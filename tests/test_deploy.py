"""What is shipped for operators names only what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from counterfoil.telemetry.metrics import METRICS

DEPLOY = Path(__file__).parent.parent / "deploy"


def alerts() -> list[dict[str, Any]]:
    """The rules of the alerts file."""
    loaded = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def test_alerts_ask_for_metrics_that_there_are() -> None:
    """A metric that is renamed takes its alert along."""
    known = {spec.name: set(spec.labels) for spec in METRICS}
    for rule in alerts():
        for name, selector in re.findall(r"(counterfoil_\w+)(?:\{(\w+)=)?", rule["expr"]):
            assert name in known, rule["alert"]
            assert not selector or selector in known[name], rule["alert"]


def test_alerts_say_what_to_do() -> None:
    """Whoever is woken reads what to look at, and no label of an alert is one that its metric lacks."""
    for rule in alerts():
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)


def test_an_alert_compares_series_of_other_labels_on_labels_that_both_have() -> None:
    """Results "down" and "ok" are never the same series: what is left out where the other is there says on what."""
    for rule in alerts():
        assert not re.search(r"\bunless\b(?! on \()", rule["expr"]), rule["alert"]


def test_what_is_scraped_is_what_the_alerts_look_at() -> None:
    """The scrape configuration reads these alerts and gives its job the name that they ask for."""
    loaded = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert loaded["rule_files"] == ["alerts.yml"]
    [job] = loaded["scrape_configs"]
    [down] = [rule for rule in alerts() if rule["alert"] == "CounterfoilDown"]
    assert f'job="{job["job_name"]}"' in down["expr"]
    assert job["metrics_path"] == "/metrics"
    assert job["basic_auth"].keys() == {"username", "password_file"}
