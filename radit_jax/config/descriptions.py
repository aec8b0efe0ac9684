"""What each setting is, read from where it is defined: its type, its range, its default and its meaning.

The meaning is the comment on the field's line or directly above it. The paper's value is in `paper.py`.
"""

import ast
import dataclasses
import functools
import inspect
import io
import json
import tokenize
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from radit_jax.config.ranges import Range
from radit_jax.config.settings import Experiment

_NAMES: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    types.NoneType: "none",
}
_BEYOND = 1e9  # an end of a range so far out is no news to a person


class Setting(NamedTuple):
    """A field of a class of settings."""

    name: str
    kind: str  # its type in words: "whole number", "text or none"
    allowed: str  # its range or choices; empty: any value of its type
    default: Any  # dataclasses.MISSING where an experiment has to give it
    meaning: str
    classes: tuple[type, ...]  # what it may hold where it is a section of settings

    @property
    def has_default(self) -> bool:
        """Whether an experiment may leave it out."""
        return self.default is not dataclasses.MISSING

    @property
    def kind_and_range(self) -> str:
        """Its type and what it may be, in words."""
        if not self.allowed:
            return self.kind
        return f"{self.kind}, {self.allowed}"


class Section(NamedTuple):
    """A class of settings, and the paths in an `Experiment` where one stands."""

    settings_class: type
    paths: tuple[str, ...]
    settings: tuple[Setting, ...]


def meanings(settings_class: type) -> dict[str, str]:
    """The comment of each field of a dataclass, as one line without the #; empty where there is none."""
    source = inspect.getsource(settings_class)
    lines = source.splitlines()
    comments = _comments(source)
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        # Lines that are a comment and nothing else, right above the field.
        first = node.lineno
        while lines[first - 2].lstrip().startswith("#"):
            first -= 1
        numbers = range(first, (node.end_lineno or node.lineno) + 1)
        words = [comments[number] for number in numbers if number in comments]
        found[node.target.id] = " ".join(words)
    return found


def _comments(source: str) -> dict[int, str]:
    """The text of each comment by the number of its line, from 1."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    return comments


@functools.cache
def describe_settings(settings_class: type) -> tuple[Setting, ...]:
    """The fields of a class of settings in order.

    >>> from radit_jax.config import RetrieveConfig
    >>> describe_settings(RetrieveConfig)[0][:4]
    ('num_chunks', 'whole number', 'x >= 1', 10)
    """
    kinds = get_type_hints(settings_class, include_extras=True)
    meaning_of = meanings(settings_class)
    settings = []
    for field in dataclasses.fields(settings_class):
        kind = kinds[field.name]
        default = field.default
        # A section with a default has all of its own ones.
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        meaning = meaning_of[field.name]
        setting = Setting(
            field.name,
            _kind_words(kind),
            _allowed_words(kind),
            default,
            meaning,
            _classes(kind),
        )
        settings.append(setting)
    return tuple(settings)


@functools.cache
def sections() -> tuple[Section, ...]:
    """Every class of settings once, in the order in which an `Experiment` holds them."""
    paths: dict[type, list[str]] = {}
    for path, settings_class in _walk(Experiment, ""):
        paths.setdefault(settings_class, []).append(path)
    found = []
    for settings_class, where in paths.items():
        found.append(Section(settings_class, tuple(where), describe_settings(settings_class)))
    return tuple(found)


def _walk(settings_class: type, path: str) -> Iterator[tuple[str, type]]:
    """The classes of settings at and under a path, with their paths."""
    yield path, settings_class
    for setting in describe_settings(settings_class):
        inner = f"{path}.{setting.name}".lstrip(".")
        for inner_class in setting.classes:
            yield from _walk(inner_class, inner)


class Value(NamedTuple):
    """What a setting of an experiment is."""

    path: str
    value: Any
    default: Any  # dataclasses.MISSING where there is none


def values(settings: Any, path: str = "") -> Iterator[Value]:
    """The values of settings and of their sections, in order.

    A section has values of its own. Where it may be of several classes, the name of its class comes first.

    >>> from radit_jax.config import RetrieveConfig
    >>> [value[:2] for value in values(RetrieveConfig(num_chunks=5), "retrieve")]
    [('retrieve.num_chunks', 5), ('retrieve.temperature', 1.0)]
    """
    for setting in describe_settings(type(settings)):
        inner = f"{path}.{setting.name}".lstrip(".")
        value = getattr(settings, setting.name)
        if not dataclasses.is_dataclass(value):
            yield Value(inner, value, setting.default)
            continue
        if len(setting.classes) > 1:
            yield Value(inner, type(value).__name__, dataclasses.MISSING)
        yield from values(value, inner)


def settings_by_path(settings: Any) -> dict[str, Any]:
    """The values of an experiment by path, as JSON has them: a list for a tuple."""
    plain = {value.path: value.value for value in values(settings)}
    return json.loads(json.dumps(plain))


# ---- types in words ----


def _members(kind: Any) -> tuple[Any, ...]:
    """The types that a value of `kind` may have."""
    is_union = get_origin(kind) in (Union, types.UnionType)
    return get_args(kind) if is_union else (kind,)


def _classes(kind: Any) -> tuple[type, ...]:
    """The classes of settings among the types of a value."""
    members = _members(kind)
    return tuple(member for member in members if dataclasses.is_dataclass(member))  # pyright: ignore[reportReturnType]


def _kind_words(kind: Any) -> str:
    """The type without its range: "whole number", "text or none"."""
    words = [_member_words(member) for member in _members(kind)]
    return " or ".join(words)


def _member_words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        kind = get_args(kind)[0]
    if origin is Literal:
        return "text"
    if origin is tuple:
        return "list of texts" if get_args(kind)[0] is str else "list of pairs"
    # A section has its class's name.
    return _NAMES.get(kind) or kind.__name__


def _allowed_words(kind: Any) -> str:
    """The range or the choices of an annotated type; empty where it has neither."""
    words = []
    for member in _members(kind):
        if get_origin(member) is Literal:
            words.append("one of " + ", ".join(get_args(member)))
        if get_origin(member) is Annotated:
            words.append(_range_words(get_args(member)[1]))
    return " or ".join(words)


def _range_words(allowed: Range) -> str:
    """A range for a person, without an end that no one will reach."""
    has_low = abs(allowed.low) < _BEYOND
    has_high = abs(allowed.high) < _BEYOND
    if has_low and not has_high:
        # A least number that only keeps 0 out.
        if 0 < allowed.low < 1e-9:
            return "x > 0"
        sign = ">=" if allowed.low_is_in else ">"
        return f"x {sign} {allowed.low:g}"
    return str(allowed)
