"""Turns YAML text and `section.field=value` overrides into a StudyConfig, or into one line that says what is wrong."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from chexseg_ray.config.rules import did_you_mean
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-3 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a config file.

    Args:
        path: a YAML file.
        overrides: `section.field=value` each, applied in this order.

    Returns:
        The checked config.

    Raises:
        InputError: the file cannot be read, or breaks a rule; one line that names the file, the field and the rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}): name a YAML file") from None
    return parse_config(text, overrides, str(path))


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "config") -> StudyConfig:
    """Parse YAML text and overrides.

    Args:
        text: the text of a config file.
        overrides: `section.field=value` each, applied in this order.
        source: the file's name, for messages.

    Returns:
        The checked config.

    Raises:
        InputError: the text breaks a rule; one line that names the source, the field and the rule.
    """
    tree = _parse_yaml(text, source)
    if not isinstance(tree, dict):
        raise InputError(f"{source}: not a mapping of sections")
    for override in overrides:
        _set(tree, override)
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{where}{line}: {problem}: write plain YAML") from None
    except (ValueError, TypeError) as error:  # a date that does not exist, a key that is a list
        raise InputError(f"{where}: {' '.join(str(error).split())}: write plain YAML") from None


def _set(tree: dict[str, Any], override: str) -> None:
    """Put one override into the tree; the file need not name the field, if it has a default."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise InputError(f"override {override!r}: write section.field=value")
    *parents, last = path.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        known = _known_keys(node, parents[:depth])
        if part not in known or not isinstance(node.get(part, {}), dict):
            raise InputError(f"override {override!r}: no section {part!r}{did_you_mean(part, known)}")
        node = node.setdefault(part, {})
    known = _known_keys(node, parents)
    if last not in known:
        raise InputError(f"override {override!r}: no field {last!r}{did_you_mean(last, known)}")
    node[last] = _parse_yaml(text, f"override {override!r}")


def _known_keys(node: Mapping[str, Any], section: Sequence[str | int]) -> list[str]:
    """Return the keys that a section may have: its model's fields, or, in a free mapping, the keys that it has."""
    fields = field_names(section)
    return fields or [str(key) for key in node]


def field_names(section: Sequence[str | int]) -> list[str]:
    """Return the names of the fields of a section of StudyConfig.

    Args:
        section: the path to it, such as ["data", "phantom"].

    Returns:
        The names; an empty list if there is no such section.
    """
    model: Any = StudyConfig
    for part in section:
        field = getattr(model, "model_fields", {}).get(part)
        model = _model_in(field.annotation) if field else None
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """Return the model that an annotation names, by itself or in a union with None."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


_UNION_TAGS = ("bool", "constrained-float", "constrained-int", "constrained-str", "float", "int", "str")


def _explain(error: ValidationError) -> str:
    """Describe the first error in one line.

    A field with alternatives has an error for each of them: if one is a rule of this package, it is reported.
    """
    errors = error.errors()
    first_path = _field_path(errors[0]["loc"])
    first = errors[0]
    for candidate in errors:
        if candidate["type"] == "value_error" and _field_path(candidate["loc"])[: len(first_path)] == first_path:
            first = candidate
            break
    where = ".".join(map(str, _field_path(first["loc"])))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{did_you_mean(str(first['loc'][-1]), field_names(first['loc'][:-1]))}"
    elif first["type"] == "missing":
        message = "missing: a config file spells out every field that shapes numbers"
    elif where and not isinstance(first["input"], Mapping):
        message = f"{message} (got {first['input']!r})"
    return f"{where}: {message}" if where else message


def _field_path(location: Sequence[str | int]) -> list[str | int]:
    """Return the path of the field of an error, without pydantic's names for the alternatives of a field."""
    return [part for part in location if isinstance(part, int) or (part not in _UNION_TAGS and "[" not in part)]
