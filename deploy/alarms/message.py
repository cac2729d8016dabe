"""What Alertmanager sends, as people read it."""

from typing import Literal

from pydantic import BaseModel, Field

MAX_ALERTS = 20
"""Of one message, in full; the others are counted."""

TEST = "zimage_test"
"""Label of an alert that only shows that one arrives: its value is noted with the outcome."""

Severity = Literal["critical", "warning", "info"]
_ORDER: tuple[Severity, ...] = ("critical", "warning", "info")


class Alert(BaseModel):
    """https://prometheus.io/docs/alerting/latest/configuration/#webhook_config"""

    status: Literal["firing", "resolved"]
    labels: dict[str, str] = Field({}, max_length=64)
    annotations: dict[str, str] = Field({}, max_length=64)

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "an alarm")

    @property
    def severity(self) -> str:
        return self.labels.get("severity", "warning")

    @property
    def summary(self) -> str:
        return self.annotations.get("summary") or self.name


class Group(BaseModel):
    """Alerts that belong together."""

    status: Literal["firing", "resolved"]
    alerts: list[Alert] = Field(min_length=1, max_length=1000)

    @property
    def severity(self) -> str:
        """The worst of them."""
        found = {alert.severity for alert in self.alerts}
        return next((severity for severity in _ORDER if severity in found), "warning")

    @property
    def title(self) -> str:
        first = self.alerts[0].summary
        more = f" (and {len(self.alerts) - 1} more)" if len(self.alerts) > 1 else ""
        return f"{'Over: ' if self.status == 'resolved' else f'{self.severity}: '}{first}{more}"

    @property
    def text(self) -> str:
        """A paragraph an alert, the worst first."""
        worst_first = sorted(self.alerts, key=_rank)
        shown = [_paragraph(alert) for alert in worst_first[:MAX_ALERTS]]
        left = len(self.alerts) - len(shown)
        return "\n\n".join([*shown, *([f"… and {left} more"] if left else [])])


def _rank(alert: Alert) -> tuple[bool, int]:
    known = alert.severity in _ORDER
    place = _ORDER.index(alert.severity) if known else len(_ORDER)
    return alert.status == "resolved", place


def _paragraph(alert: Alert) -> str:
    said = alert.annotations
    over = "Over: " if alert.status == "resolved" else ""
    lines = [over + alert.summary, said.get("description"), said.get("runbook_url")]
    return "\n".join(line for line in lines if line)
