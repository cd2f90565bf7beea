"""The figures of the report: what they draw, and in which colors."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

import matplotlib.colors
import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dibs.report.arms import group_runs
from dibs.report.figures import draw_figures, page_figures
from dibs.report.looks import COLORS, INK, PART_COLORS, SHARE_COLORS, STEPS, STYLE
from dibs.report.panels import (
    SHARE_CLASSES,
    accept_rates_panel,
    counts_panel,
    short_number,
    variance_panel,
    wrapped,
)
from dibs.report.svg import inline_svg, svg_bytes
from dibs.report.write import write_report
from dibs.types import InputError
from run_folders import make_run, reported_run, write_lines


@pytest.mark.parametrize("order", [(8, 60), (60, 8)])
def test_panels_in_a_row_reach_the_largest_count_of_all(tmp_path, order):
    """They share an axis; the last of them must not cut off the dots of the others."""
    axes = Figure().subplots(1, 2, sharey=True)
    for panel, most in zip(axes, order, strict=True):
        run = reported_run(make_run(tmp_path / f"{most}"))
        line = {"step": 1, "accept_rate": [0.5], "count": [most]}
        counts_panel(panel, [replace(run, allocations=[line])], Normalize(1, 2), 100)
    assert all(panel.get_ylim()[1] >= 60 for panel in axes)
    assert axes[0].get_ylim()[0] < 0


def test_prompts_at_exactly_0_and_1_have_strips_with_their_shares(tmp_path):
    run = reported_run(make_run(tmp_path / "run"))
    lines = [
        {"step": step, "accept_rate": [0, 1, 1, 0.5, 0.99, None], "count": [4, 2, 2, 3, 3, 1]}
        for step in (1, 10)
    ]
    axes = Figure().subplots()
    counts_panel(axes, [replace(run, allocations=lines)], Normalize(1, 10), 100)
    assert [text.get_text() for text in axes.texts] == ["20%", "40%"]
    strips = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    left, right = ((strip.x0, strip.x1) for strip in strips)
    assert left[1] == pytest.approx(0, abs=1e-9)
    assert right[0] == pytest.approx(1)
    assert axes.get_xlim() == pytest.approx((left[0], right[1]))
    early, late = (np.asarray(dots.get_offsets())[:, 0] for dots in axes.collections)
    for places in (early, late):
        assert left[0] < places[0] < left[1]
        assert ((right[0] < places[1:3]) & (places[1:3] < right[1])).all()
        assert ((places[3:] > 0.4) & (places[3:] <= 1)).all()
    assert early[0] < late[0]
    assert early[1:3].max() < late[1:3].min()


def test_an_arm_has_one_look_in_all_figures(tmp_path):
    for name in ("uniform-16", "uniform-8", "ours"):
        make_run(tmp_path / "runs" / name, allocator=name)
    arms = group_runs([reported_run(path) for path in sorted((tmp_path / "runs").iterdir())])
    assert [arm.label for arm in arms] == ["ours", "uniform-8", "uniform-16"]
    looks = [(arm.look.color, arm.look.marker) for arm in arms]
    assert len(set(looks)) == 3
    for figure in page_figures(arms):
        if figure.arm is None:
            (axes,) = figure.figure.axes
            marked = [line for line in axes.get_lines() if line.get_marker() not in ("", "None")]
            assert [(line.get_color(), line.get_marker()) for line in marked] == looks, figure.name
            if figure.name != "budget":
                labels = [line.get_label() for line in marked]
                assert labels == [arm.label for arm in arms]


def test_shares_of_the_map_are_ink_that_grows_darker():
    opacity = [SHARE_COLORS(i)[3] for i in range(SHARE_COLORS.N)]
    assert opacity[0] == 0
    assert opacity[-1] == 1
    assert opacity == sorted(set(opacity))
    assert {matplotlib.colors.to_hex(SHARE_COLORS(i)) for i in range(SHARE_COLORS.N)} == {INK}
    places = np.asarray(SHARE_CLASSES([0.0, 0.01, 0.03, 0.99, 1.0]), dtype=int)
    shades = [SHARE_COLORS(int(place))[3] for place in places]
    assert shades == pytest.approx([0, 0, 1 / 7, 1, 1])


def test_a_column_of_accept_rates_is_a_step_or_as_many_as_there_is_no_room_for(tmp_path):
    def image(steps: list[int]) -> tuple[np.ndarray, tuple[float, ...]]:
        run = reported_run(make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        counts = [[1, 0, 0, 0, 3], [2, 0, 0, 0, 0]] * len(steps)
        lines = [
            {"step": step, "accept_rate_histogram": found}
            for step, found in zip(steps, counts, strict=False)
        ]
        axes = Figure().subplots()
        accept_rates_panel(axes, [replace(run, metrics=lines)])
        (drawn,) = axes.get_images()
        columns = drawn.get_array()
        assert columns is not None
        return np.ma.getdata(columns), tuple(drawn.get_extent())

    columns, extent = image([1, 2, 4])
    assert columns.T[:, 0].tolist()[:2] == [0.25, 1]
    assert np.isnan(columns.T[2]).all()
    assert columns.T[3].tolist() == [0.25, 0, 0, 0, 0.75]
    assert extent == (0.5, 4.5, 0, 1)
    # 2,000 steps: two a column, (1 + 2) of (4 + 2) prompts in the lowest bin
    columns, extent = image(list(range(1, 2001)))
    assert columns.shape == (5, 1000)
    assert columns[:, 0].tolist() == [0.5, 0, 0, 0, 0.5]
    assert extent == (0.5, 2000.5, 0, 1)


def test_held_out_ln_p_is_drawn_where_all_arms_have_it(tmp_path):
    for name in ("even", "chosen"):
        make_run(tmp_path / "runs" / name, allocator=name)
    arms = group_runs([reported_run(tmp_path / "runs" / name) for name in ("even", "chosen")])
    drawn = {figure.name: figure for figure in page_figures(arms)}
    (axes,) = drawn["log-accept-rate"].figure.axes
    assert axes.get_ylabel() == "held-out mean ln p_i"
    told = [np.asarray(line.get_ydata())[-1] for line in axes.get_lines()]
    assert told == [arm.runs[0].metrics[-1]["log_accept_rate"] for arm in arms]
    for line in arms[0].runs[0].metrics:
        line.pop("log_accept_rate", None)
    assert "log-accept-rate" not in {figure.name for figure in page_figures(arms)}


def test_runs_with_little_in_them_are_drawn(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    write_lines(bare / "metrics.jsonl", [{"step": 0}])
    one = make_run(tmp_path / "one", steps=1, prompts=1)
    write_lines(
        one / "allocations.jsonl",
        [{"step": 1, "accept_rate": [None], "count": [0], "accepted": [0]}],
    )
    written = write_report([bare, one], tmp_path / "out")
    assert [row["state"] for row in written["runs"]] == ["damaged", "finished"]


def test_the_page_and_a_run_folder_share_their_drawings(tmp_path):
    path = make_run(tmp_path / "run")
    paths = draw_figures({"$\\odd": path, "even": path}, tmp_path / "figures")
    assert [each.name for each in paths] == ["accuracy.png", "counts.png", "accept_rates.png"]
    assert all(each.stat().st_size > 5000 for each in paths)
    with pytest.raises(InputError, match="none: does not exist"):
        draw_figures({"none": tmp_path / "none"}, tmp_path / "figures")


def test_figures_take_the_ink_of_the_page_and_are_the_same_every_time(tmp_path):
    arms = group_runs([reported_run(make_run(tmp_path / "run"))])
    with rc_context(STYLE):
        first, second = ({f.name: f for f in page_figures(arms)} for _ in range(2))
        assert svg_bytes(first["counts-1"].figure) == svg_bytes(second["counts-1"].figure)
        drawn = inline_svg(first["counts-1"].figure, "counts-1", 'say "it" & <more>')
    assert INK not in drawn
    assert "currentColor" in drawn
    assert 'aria-label="say &quot;it&quot; &amp; &lt;more&gt;"' in drawn
    assert first["counts-1"].steps == [1, 2, 3, 4]
    for step in (1, 2, 3, 4):
        assert drawn.count(f'class="step-{step}"') == 1


def test_colors_stand_out_from_both_grounds():
    style = (files("dibs.report") / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in style.split("@media", 1)
    )
    for ground in (light, dark):
        for name in ("ink", "muted", "link", "good", "warn", "bad"):
            for behind in ("ground", "raised"):
                assert contrast(ground[name], ground[behind]) >= 4.5, (name, behind)
        steps = [matplotlib.colors.to_hex(STEPS(x)) for x in np.linspace(0, 1, 9)]
        for color in (*COLORS, *PART_COLORS, *steps, ground["field"]):
            assert contrast(color, ground["ground"]) >= 3, color
    assert light["ink"] == INK


def test_the_colors_of_arms_mean_nothing_else(tmp_path):
    run = reported_run(make_run(tmp_path / "run"))
    drawn = {INK.lower(), *PART_COLORS, *(matplotlib.colors.to_hex(STEPS(x)) for x in (0.0, 1.0))}
    axes = Figure().subplots()
    variance_panel(axes, [run])
    drawn |= {matplotlib.colors.to_hex(str(line.get_color())) for line in axes.get_lines()}
    assert len(axes.get_lines()) > 3
    assert drawn & {*COLORS} == set()


def contrast(one: str, other: str) -> float:
    """WCAG 2: relative luminances' ratio."""

    def luminance(color: str) -> float:
        parts = np.array(matplotlib.colors.to_rgb(color))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_labels_and_numbers_by_hand():
    assert wrapped("min_variance, raft++, mode pilot", 24) == "min_variance, raft++,\nmode pilot"
    assert wrapped("runs/a-name/longer-than-a-line", 24) == "runs/a-name/longer-than-\na-line"
    assert wrapped("x" * 10, 2, 3) == "...\nxx\nxx"
    assert [short_number(x) for x in (0, 0.5, 999, 1500, 2e6, 3e9)] == [
        "0",
        "0.5",
        "999",
        "1.5k",
        "2M",
        "3G",
    ]
