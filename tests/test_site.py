"""The documentation as a site: it builds without a warning, and its commands are ones that there are."""

import contextlib
import io
import pathlib
import re
import shlex

import pytest

from radit_jax import cli
from radit_jax.errors import EXIT_CODES
from tools import commands_page

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page: pathlib.Path) -> list[list[str]]:
    """The words of each of a page's commands that are ours, as in `["radit", "run", "tiny"]`."""
    commands = []
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # Variables may stand before a command, and commands after others.
            for start, word in enumerate(words):
                if pathlib.Path(word).name == "radit" or word.startswith("radit_jax."):
                    commands.append([word, *words[start + 1 :]])
                    break
    return commands


def parser_of(word: str):
    """The parser of `radit`, or of a module that runs as a command."""
    if not word.startswith("radit_jax."):
        return cli.whole_parser()
    names = {command.module: command for command in cli.COMMANDS}
    module = word.removeprefix("radit_jax.")
    names["train"] = cli.Command("train", "train", "")
    return names[module].parser() if module in names else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_have_the_options_that_it_gives(page):
    for word, *arguments in commands_of(page):
        # Placeholders end a command: `radit run …`, `A | B`, `&&`.
        words = [argument for argument in arguments if argument != "…"]
        for stop in ("|", "&&", ">"):
            words = words[: words.index(stop)] if stop in words else words
        parser = parser_of(word)
        if parser is None:  # selfcheck and others without a place in `radit`
            continue
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                parser.parse_args(words)
            except SystemExit as end:
                assert end.code == 0, f"{word} {arguments}: {said.getvalue()}"


def test_every_command_and_every_exit_code_has_its_place_in_the_reference():
    page = (ROOT / "docs/reference/commands.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == cli.NAMES
    assert page == commands_page.page(), "run: python tools/commands_page.py > docs/reference/commands.md"
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert dict(rows) == {str(int(code)): meaning for code, meaning in EXIT_CODES.items()}


@pytest.mark.filterwarnings("ignore")  # of Sphinx and its extensions
def test_the_site_builds_without_a_warning(tmp_path):
    build = pytest.importorskip("sphinx.cmd.build")
    pytest.importorskip("furo")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = build.main(["-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)])
    assert status == 0, said.getvalue()
    assert "radit run [EXPERIMENT]" in (tmp_path / "reference/commands.html").read_text()
