"""The benchmark's sums: medians, ratios round by round, aims, and the tables made of them."""

import json
import math
from pathlib import Path

import pytest

from forebay.bench import report, sheet
from forebay.bench.crew import spent, total_of
from forebay.bench.plot import base_of, plot
from forebay.bench.reader import Done
from forebay.bench.sheet import LOCAL, OURS, RCLONE, S3FS, TUNED, Aim, LineSpec, Reading, collect, verdicts

SPEED = LineSpec("speed", "a speed", "GB/s", (Aim(0.9, (LOCAL,)), Aim(3, (TUNED, RCLONE, S3FS))), at_most={"READs": 0})
DELAY = LineSpec("delay", "a delay", "us", (Aim(2, (RCLONE,)),), less_is_better=True)


def rounds_of(key: str, **sides: list[float]) -> list[dict[str, dict[str, Reading]]]:
    """Rounds of one line, by side."""
    count = max(len(values) for values in sides.values())
    return [
        {side: {key: Reading(values[number], 0.5)} for side, values in sides.items() if number < len(values)}
        for number in range(count)
    ]


def test_ratios_are_taken_round_by_round() -> None:
    (line,) = collect("group", [SPEED], rounds_of("speed", Forebay=[8.0, 4.0, 9.0], local=[10.0, 4.0, 9.0]))
    first = verdicts([line])[0]
    assert first.ratio.values == (0.8, 1.0, 1.0)
    assert (first.ratio.median, first.met) == (1.0, True)


def test_where_less_is_better_the_ratio_is_turned_round() -> None:
    (line,) = collect("group", [DELAY], rounds_of("delay", Forebay=[10.0], rclone=[15.0]))
    (one,) = verdicts([line])
    assert (one.ratio.median, one.met) == (1.5, False)


def test_a_figure_of_0_has_a_ratio() -> None:
    (line,) = collect("group", [DELAY], rounds_of("delay", Forebay=[0.0, 0.0, 5.0], rclone=[15.0, 0.0, 0.0]))
    assert line.ratio(OURS, RCLONE).values == (math.inf, 1.0, 0.0)


def test_an_aim_against_peers_takes_the_best_one() -> None:
    (line,) = collect("group", [SPEED], rounds_of("speed", Forebay=[6.0], rclone=[1.0], s3fs=[4.0]))
    (one,) = verdicts([line])
    assert (one.other, one.ratio.median, one.met) == (S3FS, 1.5, False)


def test_a_side_that_missed_a_round_is_blank() -> None:
    (line,) = collect("group", [SPEED], rounds_of("speed", Forebay=[6.0, 6.0], rclone=[1.0]))
    assert set(line.figures) == {OURS}
    assert verdicts([line]) == []
    assert report.cell(SPEED, line.figures.get(RCLONE)) == ""


def test_facts_are_the_most_of_any_round() -> None:
    readings = [Reading(1.0, None, {"READs": reads}) for reads in (0.0, 7.0, 0.0)]
    figure = sheet.figure(readings)
    assert (figure.facts, figure.cpu_s) == ({"READs": 7.0}, None)


def test_readers_together_last_from_the_first_start_to_the_last_end() -> None:
    total = total_of([Done(3, 30, 100.0, 101.0), Done(4, 40, 100.5, 102.0)])
    assert (total.count, total.size, total.seconds) == (7, 70, 2.0)


def test_a_process_that_came_meanwhile_counts_whole() -> None:
    assert spent({1: 5.0, 2: 9.0}, {1: 5.5, 3: 0.25}) == 0.75


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.123"), (7.25, "7.25"), (123.4, "123"), (45678.0, "45.7k"), (2_500_000.0, "2.50M")]
)
def test_numbers(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_report_says_aims_facts_and_what_is_missing() -> None:
    readings = {"Forebay": {"speed": Reading(5.0, 0.25, {"READs": 2.0})}, "local": {"speed": Reading(10.0)}}
    lines = collect("group", [SPEED], [readings])
    whole = report.Report(lines, {"cores": "2"}, {"Forebay": "1.0"}, {"group, rclone": "not installed"}, ("1 round.",))
    text = report.markdown(whole)
    assert "| a speed, GB/s | 10 (10-10) | 5 (5-5); 0.25 CPU s |" in text
    assert "| a speed | Forebay / local | 0.50 (0.50-0.50) | 0.9 | missed |" in text
    assert "| a speed | READs | 2 | at most 0 | missed |" in text
    assert "* group, rclone: not installed" in text
    found = json.loads(report.as_json(whole))
    assert found["lines"][0]["figures"]["Forebay"]["values"] == [5.0]
    assert found["aims"][0]["met"] is False


@pytest.mark.slow
def test_the_picture_is_a_png(tmp_path: Path) -> None:
    speed, delay = rounds_of("speed", Forebay=[8.0, 4.0], local=[10.0, 4.0]), rounds_of("delay", rclone=[15.0, 16.0])
    of_nothing = rounds_of("delay", Forebay=[0.0, 0.0], rclone=[15.0, 16.0])
    lines = [line for spec, found in ((SPEED, speed), (DELAY, delay), (DELAY, of_nothing))
             for line in collect("group", [spec], found)]  # fmt: skip
    assert [base_of(line) for line in lines] == [LOCAL, None, None]
    plot(lines, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
