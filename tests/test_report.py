"""The page about a run: it shows what was recorded, whatever state the record is in."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformer.errors import ConfigError
from transformer.reporting.charts import limits, loss_limits
from transformer.reporting.display import short
from transformer.reporting.loss_curve import draw_curve
from transformer.reporting.metrics_reader import moving_mean, read_metrics, thin
from transformer.reporting.training_report import write_report as write

pytestmark = pytest.mark.usefixtures("drawn_charts")
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"

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
    """The charts by what they show."""
    return {chart.get("aria-label", "").split(" in ")[0]: chart for chart in page.iter(f"{SVG}svg")}


def part(chart: ElementTree.Element, kind: str) -> ElementTree.Element | None:
    """What is drawn of one kind, such as the line "training"."""
    return next((group for group in chart.iter(f"{SVG}g") if group.get("id", "").endswith(f"-{kind}")), None)


def marks(chart: ElementTree.Element, kind: str) -> np.ndarray:
    """The places (across, down) of the marks of one kind, in pixels."""
    group = part(chart, kind)
    uses = [] if group is None else group.iter(f"{SVG}use")
    return np.array([[float(use.get(axis)) for axis in "xy"] for use in uses]).reshape(-1, 2)


def points(chart: ElementTree.Element, kind: str) -> np.ndarray:
    """The corners (across, down) of a line, in pixels."""
    drawn = part(chart, kind).find(f"{SVG}path").get("d")
    return np.array(re.findall(r"[ML] (\S+) (\S+)", drawn), dtype=float)


def words(chart: ElementTree.Element) -> list[str]:
    """All texts of a chart."""
    return [text(element) for element in chart.iter(f"{SVG}text")]


def scale(chart: ElementTree.Element, axis: int) -> dict[float, float]:
    """The numbers along an axis (1: across, 2: up), each with where its tick is, in pixels."""
    found = {}
    for tick in part(chart, f"matplotlib.axis_{axis}"):
        if "tick_" in tick.get("id", ""):
            number = text(next(tick.iter(f"{SVG}text"))).replace(",", "").replace("k", "e3").replace("M", "e6")
            found[float(number)] = float(next(tick.iter(f"{SVG}use")).get("xy"[axis - 1]))
    return found


def text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tiles(page: ElementTree.Element) -> dict[str, str]:
    """Name and value, with unit, of the numbers at the head."""
    return {tile.findtext("dt", ""): " ".join(tile.find("dd").itertext()) for tile in page.findall(".//dl/div")}


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
    for name, chart in drawn.items():
        assert name in words(chart) and "step" in words(chart), "a chart has a title and says what is across"
    for name, unit in (("Loss", "nats per token"), ("Speed", "tokens per second"), ("Learning rate", "step size")):
        assert unit in words(drawn[name]), "and in which unit its numbers are"
    for name in ("Loss", "Compression of the validation text"):
        across = scale(drawn[name], 1)
        places = [np.interp(step, list(across), list(across.values())) for step in losses]
        assert marks(drawn[name], "validation")[:, 0] == pytest.approx(places)
        assert marks(drawn[name], "lowest").tolist() == [marks(drawn[name], "validation")[1].tolist()]
    assert "lowest: 4.2000 at step 200" in words(drawn["Loss"])
    labels = words(drawn["Loss"])
    assert labels[labels.index("100") + 1] == "410k tokens"  # 100 steps of 4,096 tokens
    assert [text(article.find("p")) for article in page.iter("article")] == [
        f"The text of step {step}" for step in (300, 200, 100)
    ]
    assert text(page.find(".//article/h3")) == "step 300 loss 4.300 · 1.433 bits per byte"


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_step(1), a_validation(1, 5.0, sample="x")])
    assert not {part.tag for part in page.iter()} & {"script", "link", "img", "iframe"}
    assert not any(part.get("src") or part.get("href") for part in page.iter())
    styles = [style.text for style in page.iter() if style.tag in ("style", f"{SVG}style")]
    assert styles and not any("url(" in style or "@import" in style for style in styles)
    links = [element.get(LINK) for element in page.iter() if element.get(LINK)]
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert links and all(link.removeprefix("#") in ids for link in links) and len(ids) == len(set(ids))


def test_a_mark_lies_where_its_loss_belongs_on_the_scale(tmp_path: Path) -> None:
    rows = [a_step(step) for step in range(1, 301)] + [a_validation(300, 4.5)]
    loss = charts(page_of(tmp_path, rows))["Loss"]
    ((_, down),) = marks(loss, "validation")
    up = scale(loss, 2)
    assert down == pytest.approx(np.interp(4.5, sorted(up), [up[tick] for tick in sorted(up)]), abs=0.1)


def test_a_mark_that_is_off_the_scale_lies_on_its_edge_and_looks_so(tmp_path: Path) -> None:
    rows = [a_validation(1, 11.0)] + [a_step(step) for step in range(1, 301)] + [a_validation(300, 4.1)]
    loss = charts(page_of(tmp_path, rows))["Loss"]
    ((across, down),) = marks(loss, "off-the-scale")
    left, top = points(loss, "patch_2").min(axis=0)  # the frame of the plot
    assert "off the scale" in words(loss) and down == top and left < across < left + 10
    assert len(marks(loss, "lowest")) == 1 and marks(loss, "lowest")[0, 1] > down
    calm = charts(page_of(tmp_path, rows[1:]))["Loss"]
    assert not len(marks(calm, "off-the-scale")) and "off the scale" not in words(calm)


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
    assert tiles(page)["Length"] == "3 steps" and len(marks(charts(page)["Loss"], "validation")) == 1


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
    assert not any("tokens" in word for word in words(charts(page)["Loss"]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_no_number_is_marked_where_it_happened(value: float | None, tmp_path: Path) -> None:
    rows = [a_step(step, **({"loss": value} if step >= 80 else {})) for step in range(1, 101)]
    rows.append(a_validation(50, 4.9))
    rows.sort(key=lambda row: row["step"])
    rows.append(a_validation(100, value))
    page = page_of(tmp_path, rows)
    loss = charts(page)["Loss"]
    across = scale(loss, 1)
    crosses = marks(loss, "not-a-number")
    assert crosses[[0, -1], 0] == pytest.approx([across[80], across[100]])
    assert "not a number, first at step 80" in words(loss)
    assert tiles(page)["Validation loss"].endswith("step 50")
    for kind in ("raw", "training", "validation"):
        assert np.isfinite(points(loss, kind)).all()


def test_a_run_that_was_resumed_counts_no_step_twice(tmp_path: Path) -> None:
    rows = [a_step(step) for step in (1, 2, 3, 4)] + [a_validation(4, 1.0), a_step(3, loss=7.0), a_step(4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read, every = read_metrics(tmp_path / "metrics.jsonl")
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
    assert len(marks(loss, "validation")) == 20
    assert len(marks(loss, "not-a-number")) == 1 and "not a number, first at step 123,457" in words(loss)
    assert tiles(page)["Length"] == "200,000 steps"
    raw, mean = points(loss, "raw"), points(loss, "training")
    assert 400 <= len(raw) <= 802 and np.ptp(raw[:, 1]) > 5 * np.ptp(mean[:, 1])
    assert any(word.startswith("training, one step in") for word in words(loss))


def test_a_gradient_norm_that_explodes_is_drawn_on_a_logarithmic_scale(tmp_path: Path) -> None:
    calm = charts(page_of(tmp_path, [a_step(step) for step in range(1, 50)]))["Gradient norm"]
    wild = charts(page_of(tmp_path, [a_step(step, gradient_norm=10.0 ** (step % 5)) for step in range(1, 50)]))
    assert "norm before clipping" in words(calm)
    assert "norm before clipping, logarithmic" in words(wild["Gradient norm"])
    places = scale(wild["Gradient norm"], 2)
    assert list(places) == [1, 10, 100, 1000, 10_000] and np.ptp(np.diff(list(places.values()))) < 1e-3


def test_the_picture_of_the_card_is_the_same_each_time_and_has_no_date(tmp_path: Path) -> None:
    page_of(tmp_path, [a_step(1), a_step(2), a_validation(2, 5.0)])
    first = draw_curve(tmp_path).read_text()
    assert draw_curve(tmp_path).read_text() == first and "date" not in first
    picture = ElementTree.fromstring(first)
    assert {"Loss", "step", "nats per token"} <= set(words(picture))
    assert len(points(picture, "training")) == 2 and len(marks(picture, "validation")) == 1


def test_without_matplotlib_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib: install decoder-only-transformer\[train\]"):
        page_of(tmp_path, [a_step(1)])
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_a_validation_has_no_picture(tmp_path: Path) -> None:
    page_of(tmp_path, [a_step(1), a_validation(1, 5.0)])
    assert draw_curve(tmp_path) == tmp_path / "loss.svg"
    page_of(tmp_path, [a_step(1)])
    assert draw_curve(tmp_path) is None and not (tmp_path / "loss.svg").exists()


def test_the_page_of_a_directory_without_a_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        write(tmp_path, "No run")
    assert not list(tmp_path.iterdir())


def test_the_scale_of_the_loss_is_not_that_of_the_first_steps_or_of_one_spike() -> None:
    steps = np.arange(1, 1001)
    losses = 3 + 2 * np.exp(-steps / 200) + 6 * np.exp(-steps / 10)
    losses[500] = 1000.0
    low, high = loss_limits(steps, losses)
    assert 2.5 < low <= losses.min() and losses[100] < high < 6


@example(5e-324, 5e-324)  # a tenth of this is 0
@example(-1e9, -1e9)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_a_scale_holds_its_data(a: float, b: float) -> None:
    low, high = limits(min(a, b), max(a, b))
    assert low < min(a, b) and max(a, b) < high


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
