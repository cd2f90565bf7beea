"""Pages of kept studies are what their kept results say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dibs.study.result_tables import markdown

STUDIES = Path(__file__).parents[2] / "docs/studies"
RULES = STUDIES / "rules"
TASKS = ("arithmetic", "polar", "lengths")


def results(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "name", ["joint", "joint-families", "joint-large", "rules", "rules/log_likelihood"]
)
def test_tables_are_made_of_the_kept_results(name):
    page = (STUDIES / name / "results.md").read_text(encoding="utf-8")
    figures = dict(re.findall(r"!\[Value against rollouts and tokens, (.*?)\]\((.*?)\)", page))
    notes = re.findall(r"^- (.*)$", page.partition("\n## ")[0], re.MULTILINE)
    assert page == markdown(results(STUDIES / name), figures, notes)
    assert "| rollouts a run | tokens a run | seconds a run |" in page


@pytest.mark.parametrize("folder", [RULES, RULES / "log_likelihood"], ids=lambda path: path.name)
def test_costs_on_the_page_of_rules_are_the_kept_ones(folder):
    page = (RULES / "README.md").read_text(encoding="utf-8")
    table = next(
        each
        for each in re.findall(r"^\| rule \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
        if ("ln p after" in each) == (folder != RULES)
    )
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in table.split("\n")[:-2]
    )
    shown = {line[0].strip("` "): dict(zip(head, line, strict=True)) for line in lines}
    kept = {(row["task"], row["arm"]): row for row in results(folder)}
    assert shown.keys() == {arm for _, arm in kept}
    seconds: dict[tuple[str, str], list[float]] = {}
    for line in (folder / "curves.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        seconds.setdefault((run["task"], run["arm"]), []).append(run["seconds"][-1])
    for arm, cells in shown.items():
        rows = [kept[task, arm] for task in TASKS]
        for row in rows:
            ends = ("speedup_rollouts", "speedup_rollouts_low", "speedup_rollouts_high")
            text = "{:.2f} ({:.2f} to {:.2f})".format(*(row[each] for each in ends))
            assert cells[f"{row['task']}: fewer rollouts (95%)"] == ("1" if arm == "64x2" else text)
        rollouts = list(dict.fromkeys(f"{row['rollouts']:,.0f}" for row in rows))
        assert cells["rollouts"] == " / ".join(rollouts)
        tokens = [f"{row['completion_tokens'] / 1000:.0f}" for row in rows]
        assert cells["tokens, thousands"] == " / ".join(tokens)
        ratios = [
            np.median(seconds[task, arm]) / np.median(seconds[task, "64x2"]) for task in TASKS
        ]
        assert cells["seconds, 64x2 = 1"] == " / ".join(
            f"{r:.2f}".removeprefix("0") for r in ratios
        )


@pytest.mark.parametrize(
    ("arm", "said"), [("speed", "103 / 79 / 111"), ("pilot_commit", "101 / 79 / 106")]
)
def test_the_share_of_screening_is_the_kept_one(arm, said):
    page = " ".join((RULES / "README.md").read_text(encoding="utf-8").split())
    rows = {row["task"]: row for row in results(RULES) if row["arm"] == arm}
    steps = [rows[task]["rollouts"] / rows[task]["optimizer_updates"] for task in TASKS]
    assert " / ".join(f"{each:.0f}" for each in steps) == said
    assert said in page
    assert 0.58 <= round(64 / max(steps), 2) <= round(64 / min(steps), 2) <= 0.81
    assert "58% to 81%" in page


def number(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


@pytest.mark.parametrize("folder", [RULES, RULES / "log_likelihood"], ids=lambda path: path.name)
def test_every_arm_has_a_paragraph_with_its_gain_cost_and_bias(folder):
    page = (RULES / "README.md").read_text(encoding="utf-8")
    half = page.partition("\n## The log-likelihood of RAFT++\n")[0 if folder == RULES else 2]
    paragraphs = dict(re.findall(r"^- `([\w-]+)`: ((?:.+\n)(?:  .+\n)*)", half, re.MULTILINE))
    kept = {(row["task"], row["arm"]): row for row in results(folder)}
    assert paragraphs.keys() == {arm for _, arm in kept} - {"64x2"}
    for arm, lines in paragraphs.items():
        text = " ".join(lines.split())
        rows = [kept[task, arm] for task in TASKS]
        ends = ("speedup_rollouts", "speedup_rollouts_low", "speedup_rollouts_high")
        gains = ("{} ({} to {})".format(*(number(row[each]) for each in ends)) for row in rows)
        assert text.startswith(" / ".join(gains))
        rollouts = dict.fromkeys(f"{row['rollouts']:,.0f}" for row in rows)
        tokens = " / ".join(f"{row['completion_tokens'] / 1000:.0f}" for row in rows)
        assert f"Cost: {' / '.join(rollouts)} rollouts, {tokens} thousand tokens, " in text
        assert re.search(r" times the seconds\. Bias: .+\.$", text)
        for verdict, word in (("faster", "ahead"), ("slower", "behind")):
            found = [f"`{row['task']}`" for row in rows if row["verdict"] == verdict]
            (said,) = re.findall(rf"shown {word} on ([^.;]*)", text, re.IGNORECASE) or [""]
            assert re.findall(r"`\w+`", said) == found
