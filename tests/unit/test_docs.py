"""README and documentation: links and anchors exist, the README is short, all commands are described, the site builds without warnings."""

import functools
import importlib.util
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from time_limits import seconds

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
README_WORDS = 900
NAMING_SOURCES = [ROOT / "CHANGELOG.md", ROOT / "Makefile"] + [
    path
    for folder in ("attributegan", "configs", "data_shards", "launch", "slurm", "tools", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml", ".html", ".sbatch")
]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The hooks of MkDocs, which are a file and not a module of a package."""
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", DOCS / "mkdocs_hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(path: Path) -> str:
    """A page without its fenced code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page, and those written as HTML."""
    text = prose(path)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        kept = "".join(letter for letter in plain if letter in " -_" or unicodedata.category(letter)[0] in "LNM")
        slug = kept.replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", other))
        found.add(f"{slug}-{number}" if slug in found else slug)
    return found | set(re.findall(r"<a id=\"([^\"]+)\"", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_their_anchors_exist(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_pages_that_source_files_name_exist() -> None:
    for path in NAMING_SOURCES:
        named = set(re.findall(r"\bdocs/[\w/-]+\.(?:md|png|py)\b", path.read_text(encoding="utf-8")))
        assert not {name for name in named if not (ROOT / name).is_file()}, path


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


def test_every_command_and_subcommand_is_in_the_reference(hooks: ModuleType) -> None:
    described = set(hooks.MARKER.findall((DOCS / "reference" / "commands.md").read_text()))
    every = {f"{name} {sub}" for name in hooks.entry_points() for sub in hooks.subcommands(name)} | set(hooks.entry_points())
    assert described == every | {"attributegan-label 2afc"}  # the help of attributegan-label is that of labelling


def test_hooks_put_in_help_and_leave_out_links_that_work_on_github_only(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/commands.md"))
    text = "<!-- help: attributegan-shard pack --> [small](../../configs/train/small.yaml) [tiles](../tiles.md) [gone](../../gone.md)"
    found = hooks.on_page_markdown(text, page)
    assert found.startswith("```text\nusage: attributegan-shard pack") and "--group" in found
    assert found.endswith(" small [tiles](../tiles.md) [gone](../../gone.md)")


def test_the_home_page_and_the_navigation_have_every_page() -> None:
    pages = {str(path.relative_to(DOCS)) for path in PAGES[1:]} - {"index.md"}
    assert pages == set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)) - {"index.md"}
    assert pages <= set(LINK.findall((DOCS / "index.md").read_text()))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs attributegan[docs]")
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds(200))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "usage: attributegan-shard pack" in (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert not [path for path in (tmp_path / "site").rglob("*.html") if re.search(r"(?:src|url)=.?https?:", path.read_text())]
    assert "from_pretrained" in (tmp_path / "site" / "reference" / "python-api.html").read_text()
