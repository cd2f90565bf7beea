"""What the documents name must exist: links, paths, modules, configuration keys, make targets."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs.config import Config, Section

ROOT = Path(__file__).parents[1]
_OUTER = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
DOCUMENTS = [*(ROOT / name for name in _OUTER), *sorted((ROOT / "docs").rglob("*.md"))]
_CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"(?<![\w./-])((?:src|tests|benchmarks|configs|docs|examples|requirements|studies|website)/[\w./+*-]*\w)"
)
_NAME = re.compile(r"\bdibs(?:\.[A-Za-z_]\w*)+")


def _anchors(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = _CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one; packages need not be installed."""
    found: Any = dibs
    for i, part in enumerate(name.split(".")[1:], start=2):
        module = ROOT.joinpath("src", *name.split(".")[:i])
        try:
            if module.is_dir() or module.with_suffix(".py").is_file():
                found = importlib.import_module(".".join(name.split(".")[:i]))
            elif not hasattr(found, part):
                return False
            else:
                found = getattr(found, part)
        except ImportError as error:
            # The optional package behind it is missing here; the tests with that package see to it.
            return not str(getattr(error, "name", None)).startswith("dibs")
    return True


def _keys(section: type[Section] = Config) -> dict[str, set[str]]:
    """The keys of every section of the configuration."""
    return {
        name: set(field.annotation.model_fields)
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(document):
    broken = []
    for link in _LINK.findall(_CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_of_the_repository_exist(document):
    missing = []
    for path in _PATH.findall(document.read_text(encoding="utf-8")):
        near = (document.parent / path).exists()
        if not near and not list(ROOT.glob(path)):
            missing.append(path)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_dotted_names_of_the_package_resolve(document):
    options = {"json"}  # dibs.json: a file of verl's checkpoints
    if document.stem in ("integrations", "compatibility-verl", "trl", "verl"):
        from dibs.integrations.pools import PoolConfig

        own = {"algorithm", "grad_norm", "num_pilots", "state_path", "counts_path"}
        options |= {*PoolConfig.model_fields, *own}
    text = document.read_text(encoding="utf-8")
    names = {name for name in _NAME.findall(text) if name.split(".")[1] not in options}
    assert {name for name in names if not _resolves(name)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configuration_keys_exist(document):
    sections = _keys()
    found = re.findall(r"`(?:--)?([a-z]+)\.([a-z_]+)\b", document.read_text(encoding="utf-8"))
    found += re.findall(r"--([a-z]+)\.([a-z_]+)\b", document.read_text(encoding="utf-8"))
    # A file's name, and verl's keys in a section of the same name.
    others = {("train", "py"), ("algorithm", "adv_estimator"), ("data", "seed")}
    unknown = {
        (section, key)
        for section, key in found
        if section in sections and key not in sections[section] and (section, key) not in others
    }
    assert unknown == set()


@pytest.mark.parametrize("name", ["recipes/verl.md", "integrations.md", "install.md"])
def test_who_installs_verl_installs_an_engine_for_its_rollouts(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    lines = [
        line for line in text.splitlines() if re.search(r"dibs-rl\[verl\]|^\| `verl` \|", line)
    ]
    assert lines
    assert all("'verl[vllm]'" in line for line in lines)


def test_pages_install_the_package_from_where_it_can_be_had():
    """It is on no index yet: a name alone finds nothing. install.md says so, and what to do."""
    pages = [*DOCUMENTS, *(ROOT / "configs").glob("*.yaml"), *(ROOT / "examples").glob("*.py")]
    short = re.compile(r"pip install ['\"]?dibs-rl(?!\S* @ git\+URL)")
    naming = {page.name for page in pages if short.search(page.read_text(encoding="utf-8"))}
    assert naming == {"install.md"}


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"`make ([a-z-]+)", document.read_text(encoding="utf-8"))
    }
    assert named - targets == set()


def test_every_suite_is_run_by_the_checks():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    suites = re.findall(r"^(test[a-z-]*):", makefile, flags=re.MULTILINE)
    assert {"test", "test-sources", "test-trackers"} <= set(suites)
    called = re.findall(r"^timeout \d+m make (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert set(suites) - set(called) == set()


def test_every_known_fault_names_tests_that_exist():
    text = (ROOT / "docs" / "known-faults.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line.split(" | ") for line in lines if not line.startswith("| fault |")]
    assert len(rows) >= 40
    for fault, _, tests in rows:
        named = re.findall(r"`([^`]+)::(test_\w+)`", tests)
        assert named, fault
        for file, test in named:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, flags=re.MULTILINE), (fault, test)
