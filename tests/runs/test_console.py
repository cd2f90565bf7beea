"""What the two views of a run print, on a recorded console."""

from __future__ import annotations

import pytest
from rich.console import Console

from dibs.runs.console import LiveView, PlainView, view_for

METRICS = {"step": 1, "reward": 0.25, "accuracy": 0.5, "rollouts": 1024, "step_seconds": 1.5}
SAMPLE = {
    "prompt": "1A+1=",
    "completion": "A2#2\n[bold]not markup[/bold]",
    "status": "accepted",
    "accept_rate": 0.5,
    "count": 3,
}


@pytest.mark.parametrize("kind", [PlainView, LiveView])
def test_views_show_numbers_and_completions_as_text(kind):
    console = Console(record=True, width=160, force_terminal=kind is LiveView)
    view = view_for(console)
    assert type(view) is kind
    view.message("[red]a path[/red]")
    view.preparing("warm start", 1, 2, "loss 3.000")
    view.preparing("warm start", 2, 2, "loss 2.000")
    view.phase("sample")
    view.step(METRICS, 10)
    view.step({**METRICS, "step": 2, "accuracy": None}, 10)
    view.samples([SAMPLE])
    view.close()
    text = console.export_text()
    assert "[red]a path[/red]" in text
    assert "0.250" in text
    assert "1,024" in text
    assert "p_i 0.50, n_i 3, accepted: 1A+1= -> A2#2 [bold]not markup[/bold]" in text


def test_what_begins_is_said_at_once_and_its_time_left_soon(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dibs.runs.console.time.monotonic", lambda: now[0])
    console = Console(record=True, width=160)
    view = PlainView(console)
    for what, seconds in (("sampling", 1), ("gradients", 12)):
        for done in range(5):
            view.preparing(what, done, 4)
            now[0] += seconds
    assert console.export_text().splitlines() == [
        "sampling: 0/4, ? left",
        "sampling: 4/4, 0:00 left",
        "gradients: 0/4, ? left",
        "gradients: 1/4, 0:36 left",
        "gradients: 2/4, 0:24 left",
        "gradients: 3/4, 0:12 left",
        "gradients: 4/4, 0:00 left",
    ]


STEP = {
    **METRICS,
    **{"accept_rate": 0.25, "count_max": 9, "starved_prompts": 2, "expected_gain": 0.0},
    **{"update_grad_norm": 1.5, "tokens_per_second": 12_345.0},
}


@pytest.mark.parametrize("kind", [PlainView, LiveView])
def test_names_are_explained_once_and_nothing_is_shown_twice(kind):
    console = Console(record=True, width=160, force_terminal=kind is LiveView)
    view = view_for(console)
    for number in (1, 2):
        view.step({**STEP, "step": number}, 10)
    view.close()
    text = " ".join(console.export_text().split())
    assert "0 where a prompt that has a gradient was left out" in text
    assert "reward" not in text  # rewards of 0 and 1: it is the accept rate
    assert "left out 2" in text or kind is LiveView
    if kind is PlainView:
        assert text.count("accept: share of completions") == 1
    view = view_for(console)
    view.step({**STEP, "step": 3, "reward": 0.75}, 10)
    view.close()
    assert "0.750" in console.export_text()


@pytest.mark.parametrize("width", [60, 100])
def test_the_table_of_steps_fits_a_narrow_terminal(width):
    console = Console(record=True, width=width, force_terminal=True)
    view = view_for(console)
    view.step({**STEP, "step": 10, "rollouts": 1_234_567}, 1000)
    view.close()
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    (heads,) = {line.strip() for line in lines if line.strip().startswith("step")}
    assert heads.split()[:2] == ["step", "accuracy"]
    assert ("gain" in heads) == (width == 100)
    assert any(line.split()[:1] == ["10"] and "1,234,567" in line for line in lines)
    assert "…" not in heads
