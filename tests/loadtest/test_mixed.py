import argparse
import json
from pathlib import Path

import pytest

from loadtest.bench.mixed import KINDS, Call, Report, Times, Wishes, _parser, main
from worker.api.schemas.edit_wire import STRENGTH

OPTIONS = argparse.Namespace(
    model="tiny", side=64, fp8="off", steps=8, strength=0.6, out=None, loras=1
)


def calls_of(*calls: tuple[str, int, float], beside_s: float = 0.0) -> list[Call]:
    """One after the other, with ``beside_s`` between them."""
    found: list[Call] = []
    at = 0.0
    for name, pictures, seconds in calls:
        found.append(Call(name, pictures, 0, at, at + seconds))
        at += seconds + beside_s
    return found


def drawn(step_s: float) -> list[Call]:
    """By a pipeline whose every call takes 1 s for two pictures, but a step."""
    rest = [("encode_image", 1, 0.5), ("encode_image", 1, 0.5), ("start", 2, 1.0)]
    return calls_of(*[*rest, *[("step", 2, step_s)] * 8, ("finish", 2, 1.0)] * 4)


def test_a_picture_takes_its_part_of_each_call_and_of_what_lies_between() -> None:
    calls = calls_of(
        ("start", 4, 9.0),  # the beginning, which is left out
        ("encode_image", 1, 0.3),
        ("start", 2, 0.4),
        ("step", 4, 2.0),
        ("finish", 2, 1.0),
        beside_s=0.1,
    )
    times = Times.of(calls)
    assert vars(times) == pytest.approx(
        {
            "image_ms": 300,
            "text_ms": 200,
            "step_ms": 500,
            "decode_ms": 500,
            "beside_ms": 300 / 4,
            "rows": 4,
        }
    )
    assert times.picture_ms(steps=8, images=0.5) == pytest.approx(150 + 200 + 8 * 575 + 500)


def test_steps_that_take_twice_as_long_in_the_mix_show_in_its_throughput() -> None:
    report = Report(Wishes(OPTIONS, []), OPTIONS)
    for kind in KINDS:
        report.add(kind, drawn(step_s=100.0))
    report.add("mixed", drawn(step_s=100.0))
    report.mixed += [Times.of(drawn(step_s=200.0))]
    for kind in KINDS:
        report.add(kind, drawn(step_s=100.0))
    assert report.ratio(0) == pytest.approx(1.0)
    assert report.ratio(1) == pytest.approx(0.5, abs=0.01)
    report.mixed[:] = report.mixed[1:] * 2
    assert not report.verdict()


def test_a_picture_to_go_on_from_takes_the_steps_of_its_strength() -> None:
    wishes = Wishes(OPTIONS, [])
    assert [wishes.steps(kind) for kind in KINDS] == [8, 5, 8, 8]


def test_pictures_are_left_as_far_as_the_api_leaves_them() -> None:
    assert _parser().parse_args([]).strength == STRENGTH


def test_kinds_are_what_they_are_called() -> None:
    wishes = Wishes(OPTIONS, [])
    text, image, mask = (wishes.spec(kind) for kind in KINDS[:3])
    assert text.source is None
    assert image.source is not None
    assert image.source.mask is None
    assert mask.source is not None
    assert mask.source.mask is not None
    assert 0 < (mask.source.mask == 255).mean() < 1


def test_the_shipped_model_is_measured_and_told_as_table_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mixed.jsonl"
    short = ["--side", "64", "--steps", "3", "--rounds", "1", "--step-rounds", "1", "--loras", "2"]
    short += ["--seconds", "1", "--warm-s", "0.1", "--full-batches", "--out", str(out)]
    main(short)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {line["what"] for line in lines} == {*KINDS, "one lora", "mixed", "ratio"}
    (mixed,) = (line for line in lines if line["what"] == "mixed")
    shared = [step for step in mixed["by_batch"] if 0 < step["adapted"] < step["rows"]]
    assert shared, "rows with adapters share steps with rows without"
    shown = capsys.readouterr().out
    for kind in (*KINDS, "mixed"):
        assert f"\n| {kind} | " in shown
