"""The page about a run: it shows what was recorded, whatever state the record is in."""

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformer.reporting.training_report import (
    Axis,
    linear,
    logarithmic,
    loss_axis,
    moving_mean,
    read_rows,
    short,
    thin,
)
from transformer.reporting.training_report import write_report as write

Row = dict[str, Any]


def a_step(step: int, **numbers: Any) -> Row:
    return {
        "step": step,
        "seconds": step * 0.5,
        "tokens": step * 4096,
        "loss": 4 + 5 * math.exp(-step / 30),
        "learning_rate": 0.003,
        "gradient_norm": 0.8,
        "tokens_per_second": 7800.0,
    } | numbers


def a_validation(step: int, loss: float, **numbers: Any) -> Row:
    return {"step": step, "seconds": step * 0.5, "tokens": step * 4096, "validation_loss": loss} | numbers


def page_of(directory: Path, rows: list[Row], tail: str = "", title: str = "A run") -> ElementTree.Element:
    """The page of a run with this record, parsed: it is XML as well as HTML, so a tag left open fails here."""
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return ElementTree.fromstring(write(directory, title).read_text(encoding="utf-8"))


def charts(page: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {figure.findtext(".//b", ""): figure for figure in page.iter("figure")}


def of_class(element: ElementTree.Element, *names: str) -> list[ElementTree.Element]:
    return [part for part in element.iter() if set(names) <= set(part.get("class", "").split())]


def text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tiles(page: ElementTree.Element) -> dict[str, str]:
    """Name and value, with unit, of the numbers at the head."""
    return {tile.findtext("dt", ""): " ".join(tile.find("dd").itertext()) for tile in page.findall(".//dl/div")}


def points(chart: ElementTree.Element, kind: str) -> np.ndarray:
    """The corners (across, down) of a line, each from 0 to 1000 within the chart."""
    line = chart.find(f".//polyline[@class='{kind}']")
    return np.array([[float(number) for number in pair.split(",")] for pair in line.get("points").split()])


def test_a_run_is_shown_with_its_numbers_charts_and_samples(tmp_path: Path) -> None:
    rows = [a_step(step, cost=step / 100, model_flop_utilisation=0.41) for step in range(1, 301)]
    losses = {100: 4.8, 200: 4.2, 300: 4.3}
    for step, loss in losses.items():
        rows.insert(rows.index(next(row for row in rows if row["step"] == step)) + 1, a_validation(
            step, loss, bits_per_byte=loss / 3, sample=f"The text of step {step}"
        ))  # fmt: skip
    page = page_of(tmp_path, rows)
    assert tiles(page) == {
        "Validation loss": "4.200 nats per token, best at step 200",
        "Perplexity": "66.69 per token",
        "Compression": "1.400 bits per byte",
        "Length": "300 steps",
        "Text": "1.229M tokens",
        "Time": "2:30 minutes",
        "Speed": "7,800 tokens/s, 41 % of the peak",
        "Cost": "3.00 unit of price_per_hour",
    }
    drawn = charts(page)
    assert list(drawn) == ["Loss", "Compression of the validation text", "Learning rate", "Speed", "Gradient norm"]
    for name in ("Loss", "Compression of the validation text"):
        marks = of_class(drawn[name], "mark")
        assert [float(mark.get("cx")[:-1]) for mark in marks] == pytest.approx([33.33, 66.67, 100])
        assert [text(mark).split(":")[0] for mark in of_class(drawn[name], "mark", "best")] == ["step 200"]
    assert [text(mark) for mark in of_class(drawn["Loss"], "mark")] == [
        f"step {step}: {loss:.4f} nats per token" for step, loss in losses.items()
    ]
    assert [text(label) for label in of_class(drawn["Loss"], "name")] == ["step", "tokens"]
    labels = [text(label) for label in of_class(drawn["Loss"], "x")]
    assert labels[labels.index("100") : labels.index("100") + 2] == ["100", "410k"]  # 100 steps of 4,096 tokens
    assert [text(article.find("p")) for article in page.iter("article")] == [
        f"The text of step {step}" for step in (300, 200, 100)
    ]
    assert text(page.find(".//article/h3")) == "step 300 loss 4.300 · 1.433 bits per byte"


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_step(1), a_validation(1, 5.0, sample="x")])
    assert not {part.tag for part in page.iter()} & {"script", "link", "img", "iframe"}
    assert not any(part.get("src") or part.get("href") for part in page.iter())
    assert "url(" not in page.findtext(".//style") and "@import" not in page.findtext(".//style")


def test_a_mark_lies_where_its_loss_belongs_on_the_scale(tmp_path: Path) -> None:
    rows = [a_step(step) for step in range(1, 301)] + [a_validation(300, 4.5)]
    loss = charts(page_of(tmp_path, rows))["Loss"]
    labels = {float(text(y)): float(y.get("y")[:-1]) for y in of_class(loss, "y") if "name" not in y.get("class")}
    (mark,) = of_class(loss, "mark")
    assert float(mark.get("cy")[:-1]) == pytest.approx(
        np.interp(4.5, sorted(labels), sorted(labels.values())[::-1]), abs=0.1
    )


def test_a_mark_that_is_off_the_scale_lies_on_its_edge_and_looks_so(tmp_path: Path) -> None:
    rows = [a_validation(1, 11.0)] + [a_step(step) for step in range(1, 301)] + [a_validation(300, 4.1)]
    first, last = of_class(charts(page_of(tmp_path, rows))["Loss"], "mark")
    assert first.get("class") == "mark off" and first.get("cy") == "0.00%" and "11.0000" in text(first)
    assert last.get("class") == "mark best" and 0 < float(last.get("cy")[:-1]) <= 100


def test_what_a_model_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    nasty = "</p><script>alert('1 & 2')</script>"
    page = page_of(tmp_path, [a_step(1), a_validation(1, 5.0, sample=nasty)], title="<b>R&D</b>")
    assert page.findtext(".//article/p") == nasty
    assert page.findtext(".//h1") == page.findtext(".//title") == "<b>R&D</b>"
    assert not list(page.iter("script"))


def test_half_a_character_in_a_sample_does_not_stop_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_validation(1, 5.0, sample="caf\ud83d")])
    assert page.findtext(".//article/p") == "caf?"


@pytest.mark.parametrize(
    "tail", ['{"step": 4, "lo', "\n\n", "null\n", '[1]\n"x"\n', '{"loss": 3}\n', '{"step": "4"}\n']
)
def test_lines_that_are_no_record_are_passed_over(tail: str, tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_step(1), a_step(2), a_step(3), a_validation(3, 5.0)], tail)
    assert tiles(page)["Length"] == "3 steps" and len(of_class(charts(page)["Loss"], "mark")) == 1


@pytest.mark.parametrize(
    "rows", [[], [a_step(1)], [{"step": 1}], [a_validation(1, 5.0)], [a_step(0), a_step(1, loss=None)]]
)
def test_a_run_that_has_hardly_begun_has_a_page(rows: list[Row], tmp_path: Path) -> None:
    page = page_of(tmp_path, rows)
    assert "Loss" in charts(page) and "nan" not in text(page.find("body")).lower()


def test_before_the_first_validation_the_training_loss_stands_at_the_head(tmp_path: Path) -> None:
    shown = tiles(page_of(tmp_path, [a_step(1, loss=9.0), a_step(2, loss=8.5)]))
    assert shown["Training loss"] == "8.500 nats per token; no validation yet"
    assert "Validation loss" not in shown and "Perplexity" not in shown


def test_charts_of_what_was_not_recorded_are_left_out(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 5.0} for step in range(1, 10)]
    page = page_of(tmp_path, rows)
    assert list(charts(page)) == ["Loss"] and list(tiles(page)) == ["Training loss", "Length"]
    assert [text(label) for label in of_class(charts(page)["Loss"], "name")] == ["step"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_no_number_is_marked_where_it_happened(value: float | None, tmp_path: Path) -> None:
    rows = [a_step(step, **({"loss": value} if step >= 80 else {})) for step in range(1, 101)]
    rows.append(a_validation(50, 4.9))
    rows.sort(key=lambda row: row["step"])
    rows.append(a_validation(100, value))
    page = page_of(tmp_path, rows)
    crosses = of_class(charts(page)["Loss"], "cross")
    assert float(crosses[0].get("x")[:-1]) == pytest.approx(80) and float(crosses[-1].get("x")[:-1]) == pytest.approx(
        100
    )
    assert "first at step 80" in text(charts(page)["Loss"].find("figcaption"))
    assert tiles(page)["Validation loss"].endswith("step 50")
    for kind in ("raw", "train", "validation"):
        assert np.isfinite(points(charts(page)["Loss"], kind)).all()


def test_a_run_that_was_resumed_counts_no_step_twice(tmp_path: Path) -> None:
    rows = [a_step(step) for step in (1, 2, 3, 4)] + [a_validation(4, 1.0), a_step(3, loss=7.0), a_step(4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read, every = read_rows(tmp_path / "metrics.jsonl")
    assert every == 1 and [row["step"] for row in read] == [1, 2, 3, 4] and read[2]["loss"] == 7.0


def test_a_long_run_makes_a_small_page_that_misses_no_validation_and_no_break(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=200_000).round(4).tolist()
    rows = [a_step(step, loss=round(4 + 0.2 * noise[step - 1], 4)) for step in range(1, 200_001)]
    rows[123_456]["loss"] = math.nan
    for k in range(20, 0, -1):
        rows.insert(k * 10_000, a_validation(k * 10_000, 4 + 1 / k, bits_per_byte=1 + 1 / k, sample="word " * 100))
    page = page_of(tmp_path, rows)
    assert (tmp_path / "report.html").stat().st_size < 400_000
    loss = charts(page)["Loss"]
    assert len(of_class(loss, "mark")) == 20
    assert [text(cross) for cross in of_class(loss, "cross")] == ["×step 123,457: not a number"]
    assert tiles(page)["Length"] == "200,000 steps"
    raw, mean = points(loss, "raw"), points(loss, "train")
    assert 400 <= len(raw) <= 802 and np.ptp(raw[:, 1]) > 5 * np.ptp(mean[:, 1])
    assert "training, one step in" in text(loss.find("figcaption"))


def test_a_gradient_norm_that_explodes_is_drawn_on_a_logarithmic_scale(tmp_path: Path) -> None:
    calm = charts(page_of(tmp_path, [a_step(step) for step in range(1, 50)]))["Gradient norm"]
    wild = charts(page_of(tmp_path, [a_step(step, gradient_norm=10.0 ** (step % 5)) for step in range(1, 50)]))
    assert "logarithmic" not in text(calm.find("figcaption"))
    assert "logarithmic" in text(wild["Gradient norm"].find("figcaption"))
    labels = [text(y) for y in of_class(wild["Gradient norm"], "y") if "name" not in y.get("class")]
    assert labels == ["1", "10", "100", "1,000", "10k"]


def test_the_page_of_a_directory_without_a_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        write(tmp_path, "No run")
    assert not list(tmp_path.iterdir())


def test_the_scale_of_the_loss_is_not_that_of_the_first_steps_or_of_one_spike() -> None:
    steps = np.arange(1, 1001)
    losses = 3 + 2 * np.exp(-steps / 200) + 6 * np.exp(-steps / 10)
    losses[500] = 1000.0
    axis = loss_axis(steps, losses)
    assert 2.5 < axis.low <= losses.min() and losses[100] < axis.high < 6


@example(5e-324, 5e-324, 3)  # a tenth of this is 0
@example(-1e9, -1e9, 3)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.integers(3, 8))
def test_a_linear_scale_holds_its_data_between_a_few_even_ticks(a: float, b: float, ticks: int) -> None:
    axis = linear(min(a, b), max(a, b), ticks)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(a, b) and max(a, b) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 3 * ticks
    assert np.allclose(np.diff(axis.ticks), np.diff(axis.ticks)[0])
    assert len({axis.text(tick) for tick in axis.ticks}) > 1


@given(st.floats(1e-9, 1e9), st.floats(1.1, 1e9))
def test_a_logarithmic_scale_holds_its_data(low: float, ratio: float) -> None:
    axis = logarithmic(low, low * ratio)
    assert axis.low <= low * (1 + 1e-6) and low * ratio <= axis.high * (1 + 1e-6)
    assert 1 <= len(axis.ticks) <= 7 and all(axis.low <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks)


def test_a_value_far_off_the_scale_stays_within_reach_of_svg() -> None:
    axis = Axis(0, 1, (0, 1))
    assert axis.place(np.array([-1e300, 0.5, 1e300])).tolist() == [-1, 0.5, 2]


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=60), st.sampled_from([1, 3, 5]))
def test_the_moving_mean_is_the_mean_of_those_around(values: list[float], width: int) -> None:
    width = min(width, 2 * ((len(values) - 1) // 2) + 1)
    means = moving_mean(np.array(values), width)
    for i, mean in enumerate(means):
        around = [v for v in values[max(0, i - width // 2) : i + width // 2 + 1] if not math.isnan(v)]
        assert mean == pytest.approx(sum(around) / len(around), abs=1e-6) if around else math.isnan(mean)


def test_thinning_keeps_the_order_and_every_extreme() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    values[[7, 31_234]] = math.nan, 99.0
    steps, kept = thin(np.arange(50_000), values)
    assert len(kept) < 900 and (np.diff(steps) > 0).all() and np.isfinite(kept).all()
    assert kept.max() == 99.0 and kept.min() == np.nanmin(values)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (4096, "4,096"),
        (12_500, "12.5k"),
        (999_960, "1M"),
        (19_234_816, "19.23M"),
        (3e9, "3B"),
        (0.001, "0.001"),
        (math.inf, "inf"),
    ],
)
def test_long_numbers_are_shortened(value: float, shown: str) -> None:
    assert short(value) == shown
