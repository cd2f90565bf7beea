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
