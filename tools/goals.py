"""How the code reads, in numbers: `python tools/goals.py [ROOT]` prints each measure next to its goal.

`tests/test_goals.py` holds every measure to a bound, so that none gets worse unnoticed. Definitions:

nodes a code line       nodes of the syntax tree over lines with a token that is neither comment nor docstring
nested comprehensions   comprehensions inside a comprehension or with two `for`s, per 100 statements
comment lines           lines with a comment, over lines that are not blank
function, file          lines; a function's docstring does not count
bare arrays             parameters and results in `models/` and `method/` whose array type gives no shape
folders in a cycle      folders from which imports, deferred ones too, lead to another folder and back;
                        a module at the package's top stands for itself
"""

import argparse
import ast
import dataclasses
import io
import pathlib
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

PACKAGE = "radit_jax"
PURE_ROOMS = ("models", "method")
# Commands, stages and planning modules each have one of these; every other public function has its own name.
SHARED_FUNCTION_NAMES = {"main", "parser", "run", "training_call"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DefinitionNode = FunctionNode | ast.ClassDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclasses.dataclass(frozen=True)
class Goal:
    """A measure with the value that it should reach; `at_least` where more is better."""

    measure: str
    goal: float
    at_least: bool = False


GOALS = (
    Goal("nodes a code line", 9),
    Goal("nodes a code line, densest folder", 9),
    Goal("nested comprehensions per 100 statements", 0.2),
    Goal("comment lines, %", 8, at_least=True),
    Goal("comment lines, barest folder, %", 8, at_least=True),
    Goal("longest function", 60),
    Goal("longest file", 400),
    Goal("most arguments", 8),
    Goal("bare arrays in the pure rooms", 0),
    Goal("class names used twice", 0),
    Goal("public function names used twice", 0),
    Goal("public docstrings, %", 100, at_least=True),
    Goal("folders in an import cycle", 0),
    Goal("errors that say 'needed' or 'came'", 0),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One module: its path inside the package, its text, and its syntax tree."""

    path: pathlib.PurePath
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder below the package, or the module's own name where it lies at the top."""
        return self.path.with_suffix("").parts[0]

    @property
    def functions(self) -> list[FunctionNode]:
        """All functions and methods, also inner ones."""
        return [node for node in ast.walk(self.tree) if isinstance(node, _FUNCTIONS)]


def read_sources(root: pathlib.Path) -> list[Source]:
    """Every module of the package under `root`, sorted by path."""
    package = root / PACKAGE
    sources = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        sources.append(Source(path.relative_to(package), text, ast.parse(text)))
    return sources


def measure(sources: Sequence[Source]) -> dict[str, float]:
    """The value of every measure in `GOALS`, in that order."""
    total = sum((count(source) for source in sources), Counts())
    folders = counts_by_room([source for source in sources if len(source.path.parts) > 1]).values()
    documented = [has_docstring for _, has_docstring in public_definitions(sources)]
    values = (
        total.nodes_per_line,
        max(folder.nodes_per_line for folder in folders),
        total.nested_per_100_statements,
        total.comment_percent,
        min(folder.comment_percent for folder in folders),
        function_lengths(sources)[0][0],
        file_lengths(sources)[0][0],
        argument_counts(sources)[0][0],
        len(bare_arrays(sources)),
        len(repeated_classes(sources)),
        len(repeated_functions(sources)),
        100 * sum(documented) / max(1, len(documented)),
        len(folders_in_cycles(sources)),
        len(errors_in_old_words(sources)),
    )
    return {goal.measure: value for goal, value in zip(GOALS, values, strict=True)}


# --- Density ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Counts:
    """What density and comments are computed from, of one module or a sum of several."""

    nodes: int = 0
    code_lines: int = 0
    statements: int = 0
    nested_comprehensions: int = 0
    comment_lines: int = 0
    filled_lines: int = 0  # not blank

    def __add__(self, other: "Counts") -> "Counts":
        sums = map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        return Counts(*sums)

    @property
    def nodes_per_line(self) -> float:
        """Nodes of the syntax tree on a line of code, on average."""
        return self.nodes / max(1, self.code_lines)

    @property
    def nested_per_100_statements(self) -> float:
        """Comprehensions with a second loop, for each 100 statements."""
        return 100 * self.nested_comprehensions / max(1, self.statements)

    @property
    def comment_percent(self) -> float:
        """Comment lines in 100 lines that are not blank."""
        return 100 * self.comment_lines / max(1, self.filled_lines)


def count(source: Source) -> Counts:
    """Nodes, lines, statements, comprehensions and comments of one module."""
    nodes = list(ast.walk(source.tree))
    tokens = list(tokenize.generate_tokens(io.StringIO(source.text).readline))
    return Counts(
        nodes=len(nodes),
        code_lines=len(_code_lines(source.tree, tokens)),
        statements=sum(isinstance(node, ast.stmt) for node in nodes),
        nested_comprehensions=_nested_comprehensions(source.tree),
        comment_lines=sum(token.type == tokenize.COMMENT for token in tokens),
        filled_lines=sum(bool(line.strip()) for line in source.text.splitlines()),
    )


def counts_by_room(sources: Sequence[Source]) -> dict[str, Counts]:
    """The counts of each room, summed over its modules."""
    rooms: dict[str, Counts] = defaultdict(Counts)
    for source in sources:
        rooms[source.room] += count(source)
    return dict(rooms)


def _code_lines(tree: ast.Module, tokens: Sequence[tokenize.TokenInfo]) -> set[int]:
    code: set[int] = set()
    for token in tokens:
        if token.type not in _LAYOUT_TOKENS:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        docstring = _docstring(node)
        if docstring:
            code -= set(range(docstring.lineno, _last_line(docstring) + 1))
    return code


def _nested_comprehensions(tree: ast.AST, inside: bool = False) -> int:
    """Comprehensions that stand in another one or have two `for`s; each counts once."""
    total = 0
    for node in ast.iter_child_nodes(tree):
        is_comprehension = isinstance(node, _COMPREHENSIONS)
        if isinstance(node, _COMPREHENSIONS):
            total += inside or len(node.generators) > 1
        total += _nested_comprehensions(node, inside or is_comprehension)
    return total


# --- Lengths and arguments -------------------------------------------------------------------------


def function_lengths(sources: Sequence[Source]) -> list[tuple[int, str]]:
    """(lines without the docstring, `path:name`) of every function, the longest first."""
    lengths = []
    for source in sources:
        for node in source.functions:
            docstring = _docstring(node)
            lines = _last_line(node) - node.lineno + 1
            if docstring:
                lines -= _last_line(docstring) - docstring.lineno + 1
            lengths.append((lines, f"{source.path}:{node.name}"))
    return sorted(lengths, reverse=True)


def file_lengths(sources: Sequence[Source]) -> list[tuple[int, str]]:
    """(lines, path) of every module, the longest first."""
    lengths = [(len(source.text.splitlines()), str(source.path)) for source in sources]
    return sorted(lengths, reverse=True)


def argument_counts(sources: Sequence[Source]) -> list[tuple[int, str]]:
    """(parameters but `self` and `cls`, `path:name`) of every function, the most first."""
    counts = []
    for source in sources:
        for node in source.functions:
            names = [parameter.arg for parameter in _parameters(node)]
            number = len([name for name in names if name not in ("self", "cls")])
            counts.append((number, f"{source.path}:{node.name}"))
    return sorted(counts, reverse=True)


# --- Names, types and docstrings -------------------------------------------------------------------


def bare_arrays(sources: Sequence[Source]) -> list[str]:
    """`path:function` for every parameter or result of a pure room that is an array of no stated shape.

    `jax.Array` alone counts; `Float[Array, "B T D"]` does not, nor does a named alias of one.
    """
    places = []
    for source in sources:
        if source.room not in PURE_ROOMS:
            continue
        for function in source.functions:
            annotations = [parameter.annotation for parameter in _parameters(function)]
            annotations.append(function.returns)
            bare = sum(_bare_in(annotation) for annotation in annotations if annotation)
            places += [f"{source.path}:{function.name}"] * bare
    return places


def _bare_in(annotation: ast.expr) -> int:
    """Array types in an annotation that stand outside a jaxtyping subscript."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        _, *dimensions = annotation.slice.elts
        if dimensions and isinstance(dimensions[0], ast.Constant | ast.JoinedStr):
            return 0
    if ast.unparse(annotation) in ("Array", "jax.Array", "np.ndarray", "numpy.ndarray", "ndarray"):
        return 1
    children = [child for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr)]
    return sum(_bare_in(child) for child in children)


def repeated_classes(sources: Sequence[Source]) -> dict[str, list[str]]:
    """Class names with more than one definition, and the modules of each."""
    return _repeated(
        (source, node.name) for source, node in _top_level(sources) if isinstance(node, ast.ClassDef)
    )


def repeated_functions(sources: Sequence[Source]) -> dict[str, list[str]]:
    """Public names of top-level functions with more than one definition, and the modules of each."""
    names = []
    for source, node in _top_level(sources):
        is_public = not node.name.startswith("_") and node.name not in SHARED_FUNCTION_NAMES
        if isinstance(node, _FUNCTIONS) and is_public:
            names.append((source, node.name))
    return _repeated(names)


def public_definitions(sources: Sequence[Source]) -> list[tuple[str, bool]]:
    """(`path:name`, whether it has a docstring) of public classes and top-level functions."""
    definitions = []
    for source, node in _top_level(sources):
        if not node.name.startswith("_"):
            definitions.append((f"{source.path}:{node.name}", _docstring(node) is not None))
    return definitions


def errors_in_old_words(sources: Sequence[Source]) -> list[str]:
    """`path:line` of every raised error whose message has the word "needed" or "came"."""
    places = []
    for source in sources:
        raised = [node for node in ast.walk(source.tree) if isinstance(node, ast.Raise) and node.exc]
        for statement in raised:
            words = " ".join(_texts(statement)).replace(",", " ").replace(".", " ").split()
            if {"needed", "came"} & set(words):
                places.append(f"{source.path}:{statement.lineno}")
    return places


# --- Imports ---------------------------------------------------------------------------------------


def folders_in_cycles(sources: Sequence[Source]) -> list[str]:
    """Folders from which imports lead to another folder and back."""
    modules = {_module_name(source) for source in sources}
    arrows: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        folder = _folder_of(_module_name(source), modules)
        for name in imported_modules(source, modules):
            arrows[folder].add(_folder_of(name, modules))
        arrows[folder].discard(folder)
    return sorted(folder for folder in arrows if folder in _reachable(arrows, folder))


def imported_modules(source: Source, modules: set[str]) -> Iterator[str]:
    """Names of this package's modules that a module imports, wherever in the file it does."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from a import b` names the module a.b, or a name in the module a.
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in submodules]
        else:
            continue
        yield from (name for name in names if name in modules)


def _module_name(source: Source) -> str:
    parts = [PACKAGE, *source.path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _folder_of(module: str, modules: set[str]) -> str:
    """The folder of a module, as `runtime/storage`; of one at the package's top, its own name."""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    parts = module.split(".")[1:]
    if not is_package and len(parts) > 1:
        parts = parts[:-1]
    return "/".join(parts)


def _reachable(arrows: Mapping[str, set[str]], start: str) -> set[str]:
    """The nodes that one or more arrows lead to from `start`."""
    seen: set[str] = set()
    waiting = list(arrows[start])
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(arrows.get(node, ()))
    return seen


# --- Syntax trees ----------------------------------------------------------------------------------


def _top_level(sources: Sequence[Source]) -> Iterator[tuple[Source, DefinitionNode]]:
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield source, node


def _repeated(names: Iterable[tuple[Source, str]]) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = defaultdict(list)
    for source, name in names:
        modules[name].append(str(source.path))
    return {name: paths for name, paths in modules.items() if len(paths) > 1}


def _docstring(node: ast.AST) -> ast.stmt | None:
    """The statement that is a module's, class's or function's docstring."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return node.body[0] if ast.get_docstring(node, clean=False) is not None else None


def _last_line(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _parameters(function: FunctionNode) -> list[ast.arg]:
    arguments = function.args
    optional = [parameter for parameter in (arguments.vararg, arguments.kwarg) if parameter]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *optional]


def _texts(node: ast.AST) -> list[str]:
    constants = [child for child in ast.walk(node) if isinstance(child, ast.Constant)]
    return [constant.value for constant in constants if isinstance(constant.value, str)]


# --- The report ------------------------------------------------------------------------------------


def report(sources: Sequence[Source]) -> str:
    """The goals with today's values, the rooms, and where the longest and the repeated stand."""
    values = measure(sources)
    lines = ["measure                                       today    goal"]
    for goal in GOALS:
        value = values[goal.measure]
        is_met = value >= goal.goal if goal.at_least else value <= goal.goal
        lines.append(
            f"{goal.measure:42} {value:8.4g}  {goal.goal:6.4g}  {'' if is_met else 'not met'}".rstrip()
        )
    lines += ["", "room              nodes a line   nested   comments, %"]
    for room, counts in sorted(counts_by_room(sources).items()):
        nodes, nested = counts.nodes_per_line, counts.nested_per_100_statements
        lines.append(f"{room:18} {nodes:10.1f} {nested:9.2f} {counts.comment_percent:12.1f}")
    for title, entries in details(sources).items():
        lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)


def details(sources: Sequence[Source], most: int = 8) -> dict[str, list[str]]:
    """For each measure of places, the places: at most `most` of those that are ranked."""
    ranked = {
        "longest functions": function_lengths(sources),
        "longest files": file_lengths(sources),
        "most arguments": argument_counts(sources),
    }
    repeated = {**repeated_classes(sources), **repeated_functions(sources)}
    undocumented = [place for place, has_docstring in public_definitions(sources) if not has_docstring]
    return {
        **{title: [f"{size:4} {place}" for size, place in sizes[:most]] for title, sizes in ranked.items()},
        "bare arrays": [f"{number} in {place}" for place, number in Counter(bare_arrays(sources)).items()],
        "names used twice": [f"{name}: {', '.join(paths)}" for name, paths in repeated.items()],
        "without docstring": undocumented,
        "folders in a cycle": folders_in_cycles(sources),
        "errors in old words": errors_in_old_words(sources),
    }


def main() -> None:
    """Print the report of the package under a folder."""
    parser = argparse.ArgumentParser("python tools/goals.py", description=(__doc__ or "").partition("\n")[0])
    here = pathlib.Path(__file__).parent.parent
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=here, help="default: this repository")
    print(report(read_sources(parser.parse_args().root)))


if __name__ == "__main__":
    main()
