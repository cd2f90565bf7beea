"""The report as it is written: one file, nothing from outside, text as text, and small."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dibs.cli import main
from dibs.report.arms import Arm, group_runs
from dibs.report.completions import TEXT, in_script, pack_completions
from dibs.report.figures import draw_figures
from dibs.report.tables import arm_row
from dibs.report.write import default_folder, write_report
from dibs.runs.find import run_folders
from run_folders import NASTY, make_run, reported_run, write_lines

SMALL = 5_000_000


class Page(HTMLParser):
    """What a browser would make of a page, as far as these tests ask."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.texts: dict[str, str] = {}
        self.source = path.read_text(encoding="utf-8")
        self._inside = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags[tag] += 1
        if "id" in values:
            self.ids[values["id"]] += 1
        self.links += [values[key] for key in ("src", "href", "xlink:href") if key in values]
        self._inside = values.get("id") or tag

    def handle_data(self, data):
        self.texts[self._inside] = self.texts.get(self._inside, "") + data

    @property
    def completions(self) -> dict:
        return json.loads(self.texts["completions-data"])


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    for seed in range(2):
        make_run(tmp_path / "runs" / f"chosen-{seed}", seed=seed)
        make_run(tmp_path / "runs" / f"even-{seed}", seed=seed, allocator="uniform", mode="none")
    written = write_report([tmp_path / "runs"], tmp_path / "out")
    page = Page(Path(written["page"]))
    assert written["bytes"] == len(page.source.encode()) == Path(written["page"]).stat().st_size
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", page.source)
    assert "default-src 'none'" in page.source
    assert page.tags["script"] == 2
    # Every svg is a whole figure; ids are unique, and what refers to one finds it.
    assert page.source.count('role="img"') == page.tags["figure"] == 4 + 1 + 1 + 2 * 3 + 1
    assert max(page.ids.values()) == 1
    wanted = {link[1:] for link in page.links if link.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page.source))
    assert wanted <= page.ids.keys()
    assert len(page.completions["rows"]) == 4 * 12
    for text in ("num_pilots: 8", "dibs 0.1.0", "estimate.mode", "finished"):
        assert text in page.source
    names = {Path(path).name for path in written["figures"]}
    assert {"accuracy-tokens.svg", "accuracy-tokens.png", "counts-2.png", "variance-1.svg"} <= names
    assert all(Path(path).stat().st_size > 3000 for path in written["figures"])
    assert [row["seeds"] for row in written["arms"]] == [[0, 1], [0, 1]]


def test_the_page_opens_with_the_verdict_and_results_stand_beside_names(tmp_path, capsys):
    for name, mode in (("uniform-16", "none"), ("uniform-8", "none"), ("ours", "pilot")):
        for seed in range(2):
            folder = tmp_path / "runs" / f"{name}-{seed}"
            allocator = name.partition("-")[0]
            make_run(folder, seed=seed, allocator=allocator, mode=mode, arm=name)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (verdict,) = found["verdict"]
    assert "from uniform-8 is shown" in verdict
    assert [row["arm"] for row in found["arms"]] == ["ours", "uniform-8", "uniform-16"]
    assert [row["reference"] for row in found["arms"]] == ["uniform-8"] * 3
    ours, eight, _ = found["arms"]
    assert eight["times_fewer_rollouts"] is None
    # 16 rollouts a prompt against 8, pilots counted, and the same scores for the same seeds
    assert ours["times_fewer_rollouts"] == pytest.approx(0.5)
    page = Path(found["page"]).read_text()
    body = page[page.index("<body") :]
    assert body.index(escape(verdict)) < body.index("<nav") < body.index("<table")
    columns = re.findall(r"<th[^>]*>([^<]*)</th>", body[: body.index("</thead>")])
    assert columns[:3] == ["arm", "accuracy after (95%)", "times fewer rollouts (95%)"]
    for row in found["arms"]:
        swatches = re.findall(rf"(<svg class=\"swatch\"(?:(?!</svg>).)*</svg>){row['arm']}<", body)
        assert len(swatches) >= 5
        assert len(set(swatches)) == 1


def test_completions_and_names_are_text_wherever_they_stand(tmp_path):
    path = make_run(tmp_path / "run & <b>", completion=NASTY, allocator="$\\foo<script>$")
    samples = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    odd = {**samples[0], "completion": "\ud800 \0 half", "reward": None, "accept_rate": None}
    write_lines(path / "samples.jsonl", [*samples, odd])
    page = Page(Path(write_report([path], tmp_path / "out")["page"]))
    assert page.tags["script"] == 2
    assert page.tags["img"] == page.tags["b"] == 0
    rows = page.completions["rows"]
    assert rows[0][3] == NASTY
    assert rows[-1][3:] == ["? \0 half", None, "rejected", None, samples[0]["count"]]


@pytest.mark.parametrize(
    "allocator",
    [
        "x\ud800y\uffff\x01",
        pytest.param("a\x01b", marks=pytest.mark.slow),
        pytest.param("a\nb\x0c\u2028", marks=pytest.mark.slow),
    ],
)
def test_names_that_no_figure_can_hold_are_escaped(tmp_path, capsys, allocator):
    for seed, mode in ((0, "pilot"), (1, "none")):
        make_run(tmp_path / "runs" / f"{seed}", seed=seed, allocator=allocator, mode=mode)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    escaped = allocator.encode("unicode_escape").decode()
    assert [row["arm"] for row in found["arms"]] == [
        f"{escaped}, mode {m}" for m in ("none", "pilot")
    ]
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert page.count(f"</svg>{escaped}, mode pilot</h3>") == 1
    drawn = draw_figures({allocator: tmp_path / "runs" / "0"}, tmp_path / "figures")
    assert len(drawn) == 3


@pytest.mark.slow
def test_folders_whose_names_are_not_text_are_reported(tmp_path, capsys):
    folders = [tmp_path / os.fsdecode(name) for name in (b"r\xff", b"r\xfe")]
    for folder in folders:
        make_run(folder)
        (folder / "config.yaml").unlink()
    assert main(["report", *map(str, folders), "--out", str(folders[0] / "out")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("2 runs, 2 arms")
    assert told[1].startswith(f"{tmp_path}/r\\udcfe: damaged: ")
    page = (folders[0] / "out" / "index.html").read_text(encoding="utf-8")
    for name in (r"r\udcff", r"r\udcfe"):
        assert f"</svg>{name}</h3>" in page
    assert (folders[0] / "out" / "figures" / "budget.png").is_file()


@pytest.mark.slow
def test_a_step_that_no_run_reaches_costs_nothing(tmp_path):
    path = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    chosen = [json.loads(line) for line in (path / "allocations.jsonl").read_text().splitlines()]
    lines[-1]["step"] = chosen[-1]["step"] = 10**9
    write_lines(path / "metrics.jsonl", lines)
    write_lines(path / "allocations.jsonl", chosen)
    written = write_report([path], tmp_path / "out")
    assert written["runs"][0]["step"] == 10**9
    assert written["bytes"] < SMALL


@pytest.mark.slow
def test_tuning_runs_are_left_out_with_a_remark(tmp_path, capsys):
    make_run(tmp_path / "out" / "runs" / "task" / "algorithm" / "arm" / "lr-1" / "seed-0")
    make_run(tmp_path / "out" / "tuning" / "task" / "seed-7", seed=7)
    (tmp_path / "out" / "study.json").write_text("{}")
    assert main(["report", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("1 run, 1 arm")
    assert second.startswith(f"{tmp_path / 'out' / 'tuning'}: left out: its runs chose")
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "1 of 1 run reported" in page
    assert "its runs chose the learning rates" in page


def test_rows_are_worked_out_once_a_report(tmp_path, monkeypatch):
    asked = []

    def counted(arm: Arm) -> dict:
        asked.append(arm.label)
        return arm_row(arm)

    for module in ("write", "page", "tables"):
        monkeypatch.setattr(f"dibs.report.{module}.arm_row", counted, raising=False)
    make_run(tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "out")
    assert asked == ["run"]


def test_json_within_a_script_element():
    text = json.dumps(NASTY)
    assert json.loads(in_script(text)) == NASTY
    assert not set("<>&") & set(in_script(text))


@pytest.mark.parametrize(
    "words", [8, pytest.param(700, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_a_run_of_ten_thousand_rollouts_stays_small(tmp_path, words):
    completion = " ".join(f"<step {i}> so that x = {i * i} & y" for i in range(words))
    path = make_run(
        tmp_path / "run", steps=20, prompts=64, mode="none", samples=512, completion=completion
    )
    written = write_report([path], tmp_path / "out")
    assert written["arms"][0]["rollouts"] == 10_240
    assert written["completions"]["kept"] == 10_240
    assert written["bytes"] < SMALL
    shown = written["completions"]["shown"]
    assert shown == len(Page(Path(written["page"])).completions["rows"])
    if words == 8:
        assert shown > 4_000
    else:
        assert shown > 50
        assert f"{shown:,} of the 10,240 completions" in Path(written["page"]).read_text()


@pytest.mark.slow
def test_many_arms_and_long_runs_stay_small(tmp_path):
    for i in range(6):
        make_run(tmp_path / "runs" / f"{i}", steps=60, prompts=256, lr=i, samples=64)
    assert write_report([tmp_path / "runs"], tmp_path / "out")["bytes"] < SMALL


def test_completions_are_thinned_evenly_and_long_ones_cut(tmp_path):
    path = make_run(tmp_path / "run", steps=50, samples=20, completion="x" * 50)
    arms = group_runs([reported_run(path)])
    packed = pack_completions(arms, limit=20_000)
    found = json.loads(packed.json)
    assert packed.kept == 1000
    assert 100 < packed.shown == len(found["rows"])
    assert len(packed.json) <= 20_000
    steps = [row[1] for row in found["rows"]]
    assert (steps[0], steps[-1]) == (1, 50)
    assert max(np.diff(steps)) <= 1
    assert pack_completions(arms, limit=10).shown == 0
    long = make_run(tmp_path / "long", samples=1, completion="a" * TEXT + "b" * TEXT)
    text = json.loads(pack_completions(group_runs([reported_run(long)])).json)["rows"][0][3]
    half = TEXT // 2
    assert text == "a" * half + f"\n[{TEXT:,} characters left out]\n" + "b" * half


def test_broken_and_unfinished_runs_are_listed_and_the_rest_reported(tmp_path, capsys):
    make_run(tmp_path / "good")
    make_run(tmp_path / "going", seed=1, finished=False)
    (make_run(tmp_path / "damaged", seed=2) / "summary.json").write_text("{")
    (make_run(tmp_path / "broken") / "metrics.jsonl").write_text("nonsense\n")
    given = [str(tmp_path / name) for name in ("good", "going", "damaged", "broken", "none")]
    assert main(["report", *given, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {Path(row["path"]).name: row["state"] for row in found["runs"]} == {
        "good": "finished",
        "going": "unfinished",
        "damaged": "damaged",
        "broken": "broken",
        "none": "broken",
    }
    source = Path(found["page"]).read_text()
    for text in ("at step 4 of 4", "summary.json is damaged", "1 damaged line", "does not exist"):
        assert text in source
    assert "3 of 5 runs reported" in source
    assert main(["report", *given, "--out", str(tmp_path / "out")]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrote {tmp_path / 'out' / 'index.html'} (0.")
    assert first.endswith(" MB): 3 runs, 1 arm")
    assert [line.split(": ")[1] for line in others] == ["unfinished", "damaged", "broken", "broken"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "nothing to report: missing does not exist"),
        (["empty", "missing"], "empty holds no run: metrics.jsonl is missing; missing does not"),
        (["empty", "--watch"], "nothing to report: empty holds no run"),
        (["run", "--watch", "0"], "--watch 0: give seconds from 1 to 86400"),
        (["run", "--watch", "nan"], "--watch nan: give seconds"),
        (["run", "--out", "file"], "cannot write to file: File exists"),
    ],
)
def test_bad_input_is_one_line_with_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    make_run(tmp_path / "run")
    assert main(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dibs report: ")
    assert message in line


def test_where_reports_go(tmp_path, monkeypatch):
    assert default_folder([Path("a")]) == Path("a/report")
    assert default_folder([Path("a"), Path("b")]) == Path("report")
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert main(["report", "."]) == 0
    assert (tmp_path / "report" / "index.html").is_file()
    assert run_folders([Path()])[0] == [Path("run")]  # the report is no run
