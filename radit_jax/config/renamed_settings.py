"""Settings that have new names: `--set`, constructors and manifests take the old ones until release 0.3.

Fingerprints are made under the old names, so that a stage which an earlier release finished stays current.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

# Old path in an Experiment -> new path.
RENAMED = {
    "lm_ft.reading_fraction": "lm_ft.gold_context_fraction",
    "lm_ft.text_fraction": "lm_ft.corpus_text_fraction",
    "r_ft.text_fraction": "r_ft.corpus_text_fraction",
    "r_ft.temperature": "retrieve.temperature",
}
CLASSES = {"LlamaConfig": "DecoderConfig"}  # of settings: old name -> new name
MOVED = {"r_ft": "temperature"}  # a section, and its field that is in another section now

# A stage takes some settings as arguments of its own, which have the names of the settings' fields.
_FIELDS = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in RENAMED.items()}

SettingsClass = TypeVar("SettingsClass", bound=type)


class RenamedSettingWarning(FutureWarning):
    """A setting was given, or read, by its old name. Python shows it wherever that was, `replace` too."""


class MovedValue(NamedTuple):
    """What a section says of its field in `MOVED`, as an attribute with an underscore before the name.

    `value` is what its old name gives, or is given. `in_experiment` is the value under the new name in the
    Experiment that the section comes from; None in a section that was in none.
    """

    value: Any
    in_experiment: Any

    @property
    def is_given(self) -> bool:
        """Whether the old name was given a value that is not under the new name yet."""
        return self.value != self.in_experiment


def notice(old: str) -> str:
    """What a person is told who uses the old path of a setting."""
    return f"{old} was renamed {RENAMED[old]}; the old name works until release 0.3"


def accept_old_names(section: str) -> Callable[[SettingsClass], SettingsClass]:
    """Let a dataclass, which is `section` of an Experiment, be made and read by its fields' old names too.

    Both warn. A constructor that is given a setting by both names raises ValueError.
    """
    new_names = _renamed_in(section)

    def decorate(settings_class: SettingsClass) -> SettingsClass:
        init = settings_class.__init__
        all_fields = {field.name for field in dataclasses.fields(settings_class)}

        @functools.wraps(init)
        def init_by_any_name(self: Any, *values: Any, **named: Any) -> None:
            # `dataclasses.replace` gives every field, so there the old name changes the value under the new.
            is_replace = not values and named.keys() >= all_fields
            for old, new in new_names.items():
                if old in named:
                    _take_old_name(section, old, new, named, is_replace)
            init(self, *values, **named)

        def read_by_old_name(self: Any, name: str) -> Any:
            """`__getattr__`, which Python calls for names that no field has: the value under the new name."""
            if name not in new_names:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            old = f"{section}.{name}"
            value = getattr(self, new_names[name])
            # A moved field is in another section now; the Experiment leaves a copy here, in a MovedValue.
            # None: this section was put into no Experiment, and nobody gave it the field by the old name.
            if name == MOVED.get(section):
                if value is None:
                    raise AttributeError(f"{notice(old)}, in settings of an Experiment only")
                value = value.value
            warnings.warn(notice(old), RenamedSettingWarning, stacklevel=2)
            return value

        # Set here and not written in a base class: a type checker still knows which names there are.
        type.__setattr__(settings_class, "__init__", init_by_any_name)
        type.__setattr__(settings_class, "__getattr__", read_by_old_name)
        return settings_class

    return decorate


def _take_old_name(section: str, old: str, new: str, named: dict[str, Any], is_replace: bool) -> None:
    """Put a constructor's argument `old` under `new` in `named`, with a warning."""
    if new in named and not is_replace:
        raise ValueError(
            f"{section}.{old}: expected one name of the setting, got {section}.{new} too. "
            "Leave the old name out."
        )
    warnings.warn(notice(f"{section}.{old}"), RenamedSettingWarning, stacklevel=3)
    value = named.pop(old)
    if old == MOVED.get(section):
        before = named.get(new)
        value = MovedValue(value, before.in_experiment if before else None)
    named[new] = value


def with_old_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings, in their canonical form, under the names that fingerprints are made with."""
    fields = {new: old for old, new in _FIELDS.items()}
    classes = {new: old for old, new in CLASSES.items()}
    renamed = _with_fields_renamed(settings, fields, classes)
    # A field that moved is an argument of the stage now, and was in its section.
    for section, field in MOVED.items():
        if section in renamed and field in renamed:
            renamed[section] = {**renamed[section], field: renamed.pop(field)}
    return renamed


def with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings, as a manifest of any release has them, under today's names."""
    renamed = _with_fields_renamed(settings, _FIELDS, CLASSES)
    for section, field in MOVED.items():
        fields = renamed.get(section)
        if isinstance(fields, dict) and field in fields:
            renamed[field] = fields.pop(field)
    return renamed


def _with_fields_renamed(
    settings: Mapping[str, Any],
    fields: Mapping[str, str],
    classes: Mapping[str, str],
) -> dict[str, Any]:
    """`settings` and their sections with names replaced by two tables."""
    renamed = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = _with_fields_renamed(value, fields, classes)
        elif name == "class":
            value = classes.get(value, value)
        renamed[fields.get(name, name)] = value
    return renamed


def _renamed_in(section: str) -> dict[str, str]:
    """The old names of a section's fields, with the names of what holds them now."""
    names = {}
    for old, new in RENAMED.items():
        old_section, _, old_field = old.partition(".")
        if old_section == section:
            is_moved = old_field == MOVED.get(section)
            names[old_field] = f"_{old_field}" if is_moved else new.partition(".")[2]
    return names
