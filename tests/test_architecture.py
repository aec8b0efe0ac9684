"""Imports point down, and nothing that runs imports torch or TensorFlow."""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parent.parent / "radit_jax"

# A room may import from its own floor's line above and from every line before it, never from one after.
FLOORS = (
    ("renamed",),
    ("config",),
    ("command_line",),
    ("text",),
    ("errors",),
    ("models",),
    ("method",),
    ("runtime",),
    ("data",),
    ("lm", "retrieval"),
    ("evaluation",),
    ("stages", "planning"),
    ("pipeline",),
    ("report", "serving"),
    ("api",),
    ("train", "ask", "show", "lm_eval", "plan", "push", "selfcheck", "__init__"),
    ("commands",),
    ("cli",),
    ("completion", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: pathlib.Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module == "radit_jax":
            names = [f"radit_jax.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("radit_jax.")}
    return rooms


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_module_stands_on_a_floor() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} == set(FLOOR_OF)


def test_the_architecture_shows_every_module() -> None:
    tree = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    missing = [path.name for path in PACKAGE.rglob("[!_]*.py") if path.name not in tree]
    assert not missing


def test_the_readme_shows_every_room() -> None:
    package = (PACKAGE.parent / "README.md").read_text().partition("## The package")[2]
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"]
    missing = [room for room in rooms if f"{room}/" not in package]
    assert rooms and not missing


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest takes them for one module, and fails where a worker gets both."""
    names = [path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    twice = [name for name in set(names) if names.count(name) > 1]
    assert not twice


def test_imports_point_down() -> None:
    for path in PACKAGE.rglob("*.py"):
        for room in imported_rooms(path) - {room_of(path)}:
            assert FLOOR_OF[room] < FLOOR_OF[room_of(path)], f"{path.relative_to(PACKAGE)} imports {room}"


def test_stages_never_import_each_other() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        assert "radit_jax.stages" not in path.read_text(), path.name


def test_training_imports_neither_torch_nor_tensorflow() -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("[!_]*.py")
    ]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "print([name for name in ('torch', 'tensorflow') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
