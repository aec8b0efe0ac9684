"""The documents name files, functions and versions that exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "radit_jax"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "launch" / "README.md"]
# The changelog names modules of earlier versions.
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
OUR_FOLDERS = ("radit_jax", "tests", "experiments", "benchmarks", "launch", "tools")
FILE_NAMES = {path.name for folder in OUR_FOLDERS for path in (ROOT / folder).rglob("*.*")}


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: pathlib.Path) -> None:
    paths = re.findall(r"`([\w/]+\.(?:py|sh|yaml))\b", page.read_text())
    missing = [path for path in paths if not is_file_of_ours(path)]
    assert not missing


def is_file_of_ours(path: str) -> bool:
    """Whether a path exists below the repository or the package; of a bare name, whether any file has it."""
    if "/" not in path:
        return path in FILE_NAMES
    return (ROOT / path).is_file() or (PACKAGE / path).is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(page: pathlib.Path) -> set[str]:
    """The headings of a page in the form of a link's fragment."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_first_command_is_in_the_readmes_first_15_lines() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()[:15]
    assert sum(line.startswith("```sh") for line in lines) == 2


def test_the_linter_before_a_commit_is_the_linter_of_the_check() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    versions = re.findall(r"^ruff==(\S+)", constraints, re.MULTILINE)
    assert re.findall(r"rev: v(\S+)", hooks) == versions
