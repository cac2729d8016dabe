"""When a front's guard has links made; the command is one that notes that it ran."""

import os
import time
from dataclasses import replace
from typing import Any

import pytest

from deploy import rollout_record
from deploy.guard.host_watch import HostRow, HostWatch
from deploy.guard.journal import Journal
from deploy.guard.relinking import COMMAND, Relinking
from deploy.guard.settings import FrontSettings
from deploy.host.processes import Identity
from deploy.layout import Layout
from deploy.rollout_record import Holder, Outcome, Record
from tests.deploy.processes import PATIENCE_S, wait_until

LINKS = ("h1", "h2", "h3")


class Front:
    def __init__(self, layout: Layout, **rules: Any) -> None:
        layout.links_dir.mkdir(exist_ok=True)
        self.layout, self.journal = layout, Journal()
        self.ran = layout.var_dir / "ran"
        self.watches: list[HostWatch] = []
        command = ("/bin/sh", "-c", f'echo "$0" >> "{self.ran}"', COMMAND)
        told = {"relink_calm_s": 1e-9, "relink_every_s": 1e-9, **rules}
        told = {"links": LINKS, "weights": {"h1": 4}, **told}
        settings = FrontSettings(relink_command=command, **told)
        self.relinking = Relinking(settings, layout, self.journal, lambda: self.watches)

    def join(self, *names: str, workers: int = 4) -> None:
        """They take links in the order of these, and requests."""
        for link, name in zip(LINKS[len(self.watches) :], names, strict=False):
            watch = HostWatch(link, HostRow(name, "10.0.0.7:7862", workers), self.layout, 0.2)
            watch.out_since = None
            self.watches.append(watch)

    def serve(self, *pools: tuple[str, ...] | None) -> None:
        """What hosts have now, in the order of their links."""
        for watch, each in zip(self.watches, pools, strict=True):
            watch.row = replace(watch.row, pools=each)

    def times_run(self) -> int:
        return len(self.ran.read_text().splitlines()) if self.ran.exists() else 0

    def look_until_run(self, times: int) -> None:
        def looked() -> bool:
            if self.times_run() < times:
                self.relinking.look()
            return self.times_run() >= times

        wait_until(looked, "begun")
        if begun := self.relinking._process:
            begun.wait(PATIENCE_S)

    @property
    def alarm(self) -> str:
        return "".join(alarm["text"] for alarm in self.journal.alarms)


def ended(layout: Layout, outcome: Outcome, why: str = "") -> None:
    """As the command notes it."""
    me = vars(Identity.of(os.getpid()))
    holder = Holder(**me, user="zimage", command=COMMAND)
    record = Record(id="r", kind="reload", holder=holder, since=1.0, outcome=outcome, why=why)
    rollout_record.write(layout, record)


def test_links_are_made_before_the_spare_ones_run_out(layout: Layout) -> None:
    front = Front(layout)
    front.join("a")
    front.relinking.look()
    assert front.times_run() == 0  # two are left
    front.join("b")
    front.look_until_run(1)


def test_links_are_not_made_while_hosts_are_still_joining(layout: Layout) -> None:
    front = Front(layout, relink_calm_s=3600.0)
    front.join("a", "b")
    for _ in range(3):
        front.relinking.look()
    assert front.times_run() == 0


def test_links_are_made_again_only_after_a_while_whichever_guard_began(layout: Layout) -> None:
    first = Front(layout, relink_every_s=3600.0)
    first.join("a", "b")
    first.look_until_run(1)
    second = Front(layout, relink_every_s=3600.0)
    second.join("a", "b")
    for _ in range(3):
        second.relinking.look()
    assert second.times_run() == 1
    os.utime(layout.links_begun, (time.time() - 3601,) * 2)
    second.look_until_run(2)


@pytest.mark.parametrize("outcome", ["failed", "refused", "interrupted"])
def test_links_that_could_not_be_made_are_an_alarm_and_tried_much_later(
    layout: Layout, outcome: Outcome
) -> None:
    front = Front(layout)
    front.join("a", "b")
    front.look_until_run(1)
    ended(layout, outcome, "nginx refuses the rendered configuration")
    ran = front.times_run()
    for _ in range(3):
        front.relinking.look()
    assert [alarm["name"] for alarm in front.journal.alarms] == ["few_links"]
    assert "nginx refuses" in front.alarm
    assert front.times_run() == ran
    os.utime(layout.links_begun, (time.time() - 601,) * 2)
    front.look_until_run(ran + 1)


def test_the_alarm_ends_when_links_are_there(layout: Layout) -> None:
    front = Front(layout)
    front.join("a", "b")
    layout.links_begun.touch()
    ended(layout, "failed", "a reason")
    front.relinking.look()
    assert front.journal.alarms
    front.watches.pop()
    front.relinking.look()
    assert front.journal.alarms == []


def test_links_with_the_weight_of_others_are_set_right_much_later(layout: Layout) -> None:
    front = Front(layout, relink_again_s=1e-9)
    front.join("a", workers=8)
    front.look_until_run(1)
    patient = Front(layout)
    patient.join("a", workers=8)
    patient.relinking.look()
    assert patient.times_run() == 1
    patient.watches[0].row = replace(patient.watches[0].row, workers=4)
    patient.relinking.look()
    assert patient.journal.alarms == []


A, B = ("a" * 10,), ("b" * 10,)
LINKED = tuple(f"h{n}" for n in range(1, 9))
ROOMY: dict[str, Any] = {"links": LINKED, "weights": {"h1": 4, "h2": 4}}


def test_pools_are_made_soon_for_hosts_that_have_other_models_now(layout: Layout) -> None:
    front = Front(layout, **ROOMY)
    front.join("a", "b")
    front.serve(A, A)
    front.relinking.look()
    assert front.times_run() == 0
    front.serve(A, (*A, *B))
    front.look_until_run(1)
    assert front.journal.alarms == []


def test_pools_are_made_anew_when_models_come_and_go_or_a_host_joins(layout: Layout) -> None:
    front = Front(layout, **ROOMY, serves={"h1": A, "h2": B})
    front.join("a", "b")
    front.serve(A, B)
    front.relinking.look()
    assert front.times_run() == 0
    front.serve(A, A)
    front.look_until_run(1)
    front.serve(A, B)
    front.relinking.look()
    front.join("c")
    front.serve(A, B, B)
    front.look_until_run(2)


def test_host_that_is_away_or_does_not_say_what_it_has_changes_no_pools(layout: Layout) -> None:
    front = Front(layout, **ROOMY, serves={"h1": A, "h2": B})
    front.join("a", "b")
    front.serve(A, None)
    front.relinking.look()
    front.watches.pop()
    front.serve(A)
    front.relinking.look()
    assert front.times_run() == 0


def test_pools_that_could_not_be_made_are_an_alarm_and_tried_much_later(layout: Layout) -> None:
    front = Front(layout, **ROOMY)
    front.join("a", "b")
    front.serve(A, B)
    front.look_until_run(1)
    ended(layout, "refused", "more than links has changed")
    front.relinking.look()
    assert [alarm["name"] for alarm in front.journal.alarms] == ["old_pools"]
    assert "more than links has changed" in front.alarm
    assert front.times_run() == 1
    front.serve(A, A)
    front.relinking.look()
    assert front.journal.alarms == []
