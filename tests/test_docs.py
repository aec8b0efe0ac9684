"""The documents name files, functions and versions that exist."""

import ast
import pathlib
import re
from collections import Counter
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "radit_jax"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "launch" / "README.md"]
# The changelog names modules of earlier versions.
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
OUR_FOLDERS = ("radit_jax", "tests", "experiments", "benchmarks", "launch", "tools")
FILE_NAMES = {path.name for folder in OUR_FOLDERS for path in (ROOT / folder).rglob("*.*")}

WALK_STEP = re.compile(r"^( *)- `([\w/]+\.py):([\w.]+)`", re.MULTILINE)
WALKS = ROOT / "docs" / "walks.md"


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


def test_every_step_of_a_walk_is_a_function() -> None:
    steps = [(path, name) for _, path, name in WALK_STEP.findall(WALKS.read_text())]
    assert len(steps) == WALKS.read_text().count(".py:")
    missing = [f"{path}:{name}" for path, name in steps if name not in definitions(PACKAGE / path)]
    assert not missing


def definitions(path: pathlib.Path) -> set[str]:
    """Functions and classes of a module, nested ones and methods as `Outer.inner`."""
    names = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(path.read_text()), "")
    return names


def test_a_walk_enters_no_room_twice_but_batches() -> None:
    for top, rooms in rooms_entered(WALKS.read_text()):
        twice = [room for room, count in Counter(rooms).items() if count > 1 and room != "data/batches"]
        assert not twice, f"{top}: {twice}"


def rooms_entered(page: str) -> Iterator[tuple[str, list[str]]]:
    """For each top line of a walk, the rooms that the lines under it enter.

    A line enters its room where the line above it in its caller, or the caller itself, is of another room;
    returning to a caller enters nothing.
    """
    top, entered = "", []
    stack: list[str] = []  # the last line's room at each depth
    for indent, path, _ in WALK_STEP.findall(page):
        depth, room = len(indent) // 2, str(pathlib.PurePath(path).parent)
        if depth == 0:
            if entered:
                yield top, entered
            top, entered, stack = path, [], []
        is_inside = depth > 0 and stack[depth - 1] == room
        is_next = depth < len(stack) and stack[depth] == room
        if not is_inside and not is_next:
            entered.append(room)
        stack[depth:] = [room]
    yield top, entered


def test_the_first_command_is_in_the_readmes_first_15_lines() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()[:15]
    assert sum(line.startswith("```sh") for line in lines) == 2


def test_the_linter_before_a_commit_is_the_linter_of_the_check() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    versions = re.findall(r"^ruff==(\S+)", constraints, re.MULTILINE)
    assert re.findall(r"rev: v(\S+)", hooks) == versions
