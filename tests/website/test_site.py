"""How pages of docs become a site, the check of what was built, and the numbers of the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from check_site import faults
from hooks import OUTER, on_page_markdown, with_links
from pictures import BUDGET, RATES, SHARES, fixed_batch, grid_counts

from dibs.allocation.fractional import rounded_variance

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("link", "at", "page", "fitted"),
    [
        ("[a](engines.md#b)", "docs/training.md", "training.md", "[a](engines.md#b)"),
        ("[a](../README.md)", "docs/measuring.md", "measuring.md", "[a](overview.md)"),
        (
            "[a](../../SECURITY.md)",
            "docs/recipes/vllm.md",
            "recipes/vllm.md",
            "[a](../security.md)",
        ),
        ("[a](docs/rules.md)", "README.md", "overview.md", "[a](rules.md)"),
        (
            "![a](docs/images/demo-rare.png)",
            "README.md",
            "overview.md",
            "![a](images/demo-rare.png)",
        ),
        ("[`a`](../src/dibs/loop.py)", "docs/rules.md", "rules.md", "`a`"),
        ("[a](https://b.c/d)", "README.md", "overview.md", "[a](https://b.c/d)"),
        ("[a](#b)", "README.md", "overview.md", "[a](#b)"),
    ],
)
def test_links_lead_to_pages_of_the_site(link, at, page, fitted):
    assert with_links(link, at, page, "") == fitted


def test_links_to_sources_lead_to_the_repository_where_it_is_known():
    link = with_links("[a](../src/dibs/loop.py)", "docs/rules.md", "rules.md", "https://h/o/r")
    assert link == "[a](https://h/o/r/blob/main/src/dibs/loop.py)"


def test_code_is_left_as_it_is():
    class Page:
        class file:  # noqa: N801
            src_uri = "rules.md"

    text = "[a](../README.md)\n```\n[a](../README.md)\n```\n"
    out = on_page_markdown(text, Page, {"repo_url": ""}, None)
    assert out == "[a](overview.md)\n```\n[a](../README.md)\n```\n"


def test_the_navigation_has_every_page():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    listed = {
        page if isinstance(page, str) else next(iter(page.values()))
        for section in nav
        for page in next(iter(section.values()))
    }
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    # mkdocs leaves the tables of a study out of the navigation; its page links to them.
    pages = {page for page in pages if not page.endswith("/results.md")}
    assert listed == pages | set(OUTER.values())


def test_what_is_wrong_with_a_site_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there">b</a><a href="#here">a</a><a href="https://x.y/">x</a>'
        '<a href="none.html">n</a><script src="https://x.y/z.js"></script></p>'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#here">a</a>')
    (tmp_path / "c.css").write_text(
        "p {background: url(https://x.y/z.png)} q {background: url(z.png)}"
    )
    assert faults(tmp_path) == [
        "a.html loads https://x.y/z.js",
        "a.html: b.html#there leads nowhere",
        "a.html: none.html leads nowhere",
        "c.css loads url(https://x.y/z.png",
    ]


def test_the_bars_by_hand():
    found = fixed_batch()
    # p = 1/16: mu = 15/16, S = (15/16)^2 * 16 = 14.0625; p = 0.95: mu = 0.05, S = 0.0025 / 0.95.
    between = (7 / 8) * 0.05**2 + (15 / 16) ** 2 / 8
    prompts, completions = found["16 x 8\nuniform"]
    assert prompts == pytest.approx(between / 16)
    easy, hard = 0.0025 / 0.95 - 0.0025, 14.0625 - (15 / 16) ** 2
    assert completions == pytest.approx((7 / 8 * easy + hard / 8) / 128)
    counts = (7 / 8 * easy**0.5 + hard**0.5 / 8) ** 2 / 128
    assert found["16 x 8\nbest counts"] == pytest.approx((between / 16, counts))
    text = (ROOT / "docs" / "concepts" / "fixed-batch.md").read_text()
    total = {name: sum(parts) for name, parts in found.items()}
    assert f"lower the second part {completions / counts:.1f} times" in text
    assert (
        f"the sum falls {total['16 x 8' + chr(10) + 'uniform'] / (between / 16 + counts):.1f}"
        in text
    )
    ratio = total["16 x 8\nuniform"] / total["prompts and\ncounts together"]
    assert f"The variance is {ratio:.1f} times smaller" in text


def test_the_last_bar_bounds_the_variance_over_a_pool():
    # 1,024 prompts, each rounded by itself, as the module of fractional counts has it.
    of = np.repeat([0, 1], (SHARES * 1024).astype(int))
    mean, square = (1 - RATES)[of], ((1 - RATES) ** 2 / RATES)[of]
    expected = BUDGET * np.sqrt(square) / np.sqrt(square).sum()
    exact = rounded_variance(expected, mean**2, square - mean**2).sum() / 1024**2
    bar = fixed_batch()["prompts and\ncounts together"][1]
    assert exact < bar < 1.2 * exact


def test_marks_of_the_grid_are_counted():
    # Marks at 0.35, 1.35 and 2.35: none on [0, 0.3), two on [0.3, 2), one on [2, 3).
    assert grid_counts(np.array([0.3, 1.7, 1.0]), 0.35).tolist() == [0, 2, 1]
