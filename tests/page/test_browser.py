"""The page in a real browser: looks, accessibility, filters, sliders, and nothing from outside.

Screenshots are left in runs/page, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dibs.report.write import write_report
from run_folders import NASTY, make_run, reported_run, write_lines

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Request

pytestmark = pytest.mark.page
SHOTS = Path(__file__).parents[2] / "runs" / "page"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    where = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        # Root, as in a container, cannot have Chromium's sandbox.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=where, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, one of three seeds, one of them unfinished; a broken run; a completion that attacks."""
    runs = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        make_run(runs / f"chosen-{seed}", seed=seed, steps=6, prompts=32, samples=20)
    path = make_run(runs / "even", allocator="uniform", mode="none", steps=6, samples=20)
    samples = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    samples[0] |= {"completion": NASTY, "status": "timeout"}
    samples[1] |= {"completion": "long " * 1000}
    write_lines(path / "samples.jsonl", samples)
    make_run(runs / "going", seed=2, steps=6, prompts=32, samples=20, finished=False)
    (make_run(runs / "broken") / "metrics.jsonl").write_text("nonsense\n")
    return Path(write_report([runs], runs / "report")["page"])


@pytest.fixture
def opened(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page from disk, without a network; errors and requests for anything else fail the test."""
    options: dict[str, Any] = getattr(request, "param", {})
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    wrong: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        wrong.append("a dialog")
        dialog.dismiss()

    def note_outside(made: Request) -> None:
        if not made.url.startswith(("file:", "data:")):
            wrong.append(made.url)

    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", dismiss)
    page.on("request", note_outside)
    page.goto(report.as_uri())
    yield page
    assert wrong == []
    assert page.title().startswith("DIBS report: ")
    context.close()


def violations(page: Page) -> list[tuple[str, str]]:
    """What axe finds against the page: the rule, and the first element that breaks it."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found]


def options_of(size: str, scheme: str) -> dict[str, Any]:
    width, height = SIZES[size]
    return {"viewport": {"width": width, "height": height}, "color_scheme": scheme}


@pytest.mark.parametrize(
    "opened",
    [options_of(size, scheme) for size in SIZES for scheme in ("light", "dark")],
    indirect=True,
    ids=lambda options: f"{options['viewport']['width']}-{options['color_scheme']}",
)
def test_every_look_is_accessible_and_fits(opened):
    opened.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert violations(opened) == []
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert ground == ("rgb(21, 24, 29)" if dark else "rgb(255, 255, 255)")
    for drawing in opened.locator("figure svg").all():
        box = drawing.bounding_box()
        assert box["width"] >= 300
        assert 0.4 < box["height"] / box["width"] < 1.6
    SHOTS.mkdir(parents=True, exist_ok=True)
    name = f"{opened.viewport_size['width']}-{'dark' if dark else 'light'}"
    opened.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.mark.parametrize("opened", [options_of(size, "light") for size in SIZES], indirect=True)
def test_the_verdict_is_on_top_and_results_are_visible_without_scrolling_sideways(opened):
    verdict = opened.locator("#verdict p")
    assert verdict.count() == 1
    assert "No difference from uniform is shown" in verdict.inner_text()
    box, nav = verdict.bounding_box(), opened.locator("nav").bounding_box()
    assert box["y"] + box["height"] < min(nav["y"], opened.viewport_size["height"])
    head = opened.locator("#arms thead th")
    assert [head.nth(i).inner_text() for i in (1, 2)] == [
        "accuracy after (95%)",
        "times fewer rollouts (95%)",
    ]
    for row in opened.locator("#arms tbody tr").all():
        for cell in [row.locator("th"), row.locator("td").nth(0), row.locator("td").nth(1)]:
            box = cell.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= opened.viewport_size["width"]
    assert "reference" in opened.locator("#arms tbody").inner_text()


def test_an_arm_has_one_color_in_every_table_and_figure(opened):
    names = [each.inner_text() for each in opened.locator("#arms tbody th").all()]
    assert len(set(names)) == len(names) > 1
    colors = {}
    for name in names:
        beside = opened.evaluate(
            """(name) => [...document.querySelectorAll('th, td, h3, summary')]
                .filter((each) => each.childElementCount && each.textContent.trim() === name)
                .map((each) => each.querySelector('.swatch path').getAttribute('fill'))""",
            name,
        )
        assert len(beside) >= 4
        (colors[name],) = set(beside)
    assert len(set(colors.values())) == len(names)
    # In a figure the marker stands beside the name, on the same height.
    drawn = opened.evaluate(
        """() => [...document.querySelectorAll('#accuracy svg, #budget svg')].map((svg) =>
            [...svg.querySelectorAll('text')].map((text) => {
                const place = text.getBoundingClientRect();
                const near = [...svg.querySelectorAll('use')].filter((use) => {
                    const box = use.getBoundingClientRect();
                    const above = (box.top + box.bottom - place.top - place.bottom) / 2;
                    const gap = Math.max(box.left - place.right, place.left - box.right);
                    return Math.abs(above) < 6 && gap < 40;
                });
                return [text.textContent, near.map((use) => getComputedStyle(use).fill)];
            }))"""
    )
    assert len(drawn) >= 6
    for figure in drawn:
        for name, color in colors.items():
            marked = [fills for text, fills in figure if text == name and fills]
            assert marked, (name, figure)
            assert {fill for fills in marked for fill in fills} == {rgb(color)}


def rgb(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize("opened", [options_of("phone", "dark")], indirect=True)
def test_maps_of_accept_rates_are_light_on_a_dark_page(opened):
    filters = opened.locator("#accept-rates-1 .ink-shares").evaluate_all(
        "(images) => images.map((image) => getComputedStyle(image).filter)"
    )
    assert filters == ["invert(1)"]


def test_completions_are_text_and_can_be_searched_and_filtered(opened):
    from playwright.sync_api import expect

    status = opened.locator("#matches")
    cards = opened.locator("#results li")
    total = 4 * 6 * 20
    assert status.inner_text().startswith(f"{total} of {total} completions match; 25 are shown")
    assert cards.count() == 25
    opened.get_by_role("button", name="Show more").click()
    assert cards.count() == 50
    assert opened.evaluate("document.activeElement.matches('#results li:nth-child(26)')")

    opened.get_by_label("Status").select_option("timeout")
    expect(cards).to_have_count(1)
    assert cards.locator("pre").nth(1).evaluate("(block) => block.textContent") == NASTY
    assert opened.locator("main img").count() == 0
    assert cards.locator(".facts").inner_text().split("\n")[0].startswith("timeout")

    opened.get_by_label("Status").select_option("")
    opened.get_by_label("Search in").fill("LONG LONG")
    expect(cards).to_have_count(1)
    cards.get_by_role("button", name="Show all 5,000 characters").click()
    assert len(cards.locator("pre").nth(1).text_content()) == 5000

    opened.get_by_label("Search in").fill("no such text")
    expect(cards).to_have_count(0)
    assert status.inner_text() == f"None of {total} completions match."

    opened.get_by_label("Search in").fill("")
    opened.locator("#filter").get_by_label("Run").select_option(label="uniform, seed 0")
    opened.locator("#filter").get_by_label("Step").select_option("3")
    opened.get_by_label("Order").select_option("hard")
    expect(cards).to_have_count(20)
    facts = [card.inner_text() for card in cards.locator(".facts").all()]
    rates = [float(text.split("p_i ")[1].split()[0]) for text in facts]
    assert rates == sorted(rates)
    assert all("step 3" in text and "uniform, seed 0" in text for text in facts)


def test_the_slider_shows_single_steps(opened):
    figure = opened.locator("#counts-1")
    slider = figure.get_by_role("slider", name="Step")
    visible = [figure.locator(f".step-{step}").first for step in (1, 2)]
    assert all(dots.is_visible() for dots in visible)
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "step 2"
    assert [dots.is_visible() for dots in visible] == [False, True]
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "all steps"
    assert all(dots.is_visible() for dots in visible)


def test_dots_are_all_there(opened, report):
    run = reported_run(report.parents[1] / "even")
    assert opened.locator("#counts-2 use").count() >= sum(len(x["count"]) for x in run.allocations)


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_all_but_the_completions_is_there(opened):
    assert opened.locator("figure svg").first.is_visible()
    assert opened.get_by_text("Without scripts the completions cannot be shown here").is_visible()
    assert opened.locator("#filter").is_hidden()


def test_a_watched_page_loads_itself_again_and_keeps_what_was_chosen(opened, tmp_path, monkeypatch):
    from dibs.report import write as build

    page = tmp_path / "index.html"
    run = make_run(tmp_path / "run", finished=False)
    monkeypatch.setattr(
        build.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    sources = []
    with pytest.raises(KeyboardInterrupt):
        build.watch_report([run], tmp_path, 1, lambda written: sources.append(page.read_text()))
    page.write_text(sources[0].replace("DIBS report</h1>", "DIBS report, first</h1>"))
    opened.goto(page.as_uri())
    opened.get_by_label("Status").select_option("rejected")
    page.write_text(sources[0].replace("DIBS report</h1>", "DIBS report, second</h1>"))
    opened.get_by_text("DIBS report, second").wait_for(timeout=10_000)
    assert opened.get_by_label("Status").input_value() == "rejected"
    opened.get_by_label("load this page again").uncheck()
    assert violations(opened) == []
    page.write_text(sources[0].replace("DIBS report</h1>", "DIBS report, third</h1>"))
    opened.wait_for_timeout(2500)
    assert opened.get_by_text("DIBS report, second").is_visible()
