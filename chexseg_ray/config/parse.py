"""Turns YAML text and `section.field=value` overrides into a StudyConfig, or into one line about what is wrong."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from chexseg_ray.config.rules import did_you_mean
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError, quoted, shortened

_MOST_LEVELS = 20  # of nesting; the deepest field lies at five
_MOST_VALUES = 20_000  # with every alias written out
_LONGEST_MESSAGE = 600  # characters


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-3 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping of a YAML file, as SafeLoader does.

        Args:
            node: the mapping's node.
            deep: whether its values are read at once, as in SafeLoader.

        Raises:
            ConstructorError: a key appears twice.
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {quoted(key)} is there twice", key_node.start_mark
                )
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
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{where}{line}: {shortened(problem, 200)}: write plain YAML") from None
    except (ValueError, TypeError) as error:  # a date that does not exist, a key that is a list
        raise InputError(f"{where}: {shortened(str(error), 200)}: write plain YAML") from None


def _check_events(text: str) -> None:
    """Check a text's nesting, its size with every alias written out, and that no value has an explicit tag.

    A few hundred characters can nest deeper than Python follows, or stand for gigabytes.

    Raises:
        YAMLError: the text is no YAML, or breaks one of these rules.
    """
    open_nodes: list[_Extent] = [_Extent("")]
    whole: dict[str, _Extent] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark: Any = event.start_mark
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.MarkedYAMLError(problem=f"tags such as {shortened(tag)} are not read", problem_mark=mark)
        if isinstance(event, yaml.ScalarEvent) and not event.value.isascii():
            event.value.encode()  # UnicodeEncodeError is a ValueError: half of a character, as in "\ud800"
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in whole:
                raise yaml.MarkedYAMLError(problem="an alias names no value that is complete", problem_mark=mark)
            open_nodes[-1].add(whole[event.anchor])
        elif isinstance(event, yaml.NodeEvent):
            open_nodes.append(_Extent(event.anchor or ""))
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            done = open_nodes.pop()
            open_nodes[-1].add(done)
            whole[done.anchor] = done
        if len(open_nodes) + open_nodes[-1].levels > _MOST_LEVELS:
            raise yaml.MarkedYAMLError(problem="values are nested too deeply", problem_mark=mark)
        if open_nodes[-1].values > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem="there are too many values", problem_mark=mark)


@dataclass
class _Extent:
    """The extent of a YAML value: its anchor, the values in it with every alias written out, and levels of nesting."""

    anchor: str
    values: int = 1
    levels: int = 0

    def add(self, inner: "_Extent") -> None:
        """Count a value that lies in this one."""
        self.values += inner.values
        self.levels = max(self.levels, inner.levels + 1)


def _set(tree: dict[str, Any], override: str) -> None:
    """Put one override into the tree; the file need not name the field, if it has a default."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise InputError(f"override {quoted(override)}: write section.field=value")
    override = shortened(override)
    *parents, last = path.split(".")
    if len(parents) >= _MOST_LEVELS:
        raise InputError(f"override '{override}': no field lies so deep: write section.field=value")
    node: Any = tree
    for depth, part in enumerate(parents):
        key = _key_in(node, parents[:depth], part, f"override '{override}': no section")
        inner = node.setdefault(key, {})
        if not isinstance(inner, dict):
            whole = ".".join(parents[: depth + 1])
            raise InputError(f"override '{override}': {whole} is {quoted(inner)}, not a section: write {whole}=...")
        node = inner
    key = _key_in(node, parents, last, f"override '{override}': no field")
    node[key] = _parse_yaml(text, f"override '{override}'")


def _key_in(node: Mapping[Any, Any], section: Sequence[str | int], part: str, fault: str) -> Any:
    """Return the key of one part of an override's path; a free mapping, such as compute.rates.images, takes any key."""
    present = next((key for key in node if str(key) == part), None)  # YAML reads 100 as a number
    known = field_names(section)
    if known and part not in known:
        raise InputError(f"{fault} {quoted(part)}{did_you_mean(part, known)}")
    return part if present is None else present


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

    A field with alternatives has an error for each of them: reported is a rule of this package, if one was broken, else
    the error that lies deepest, which is that of the alternative with the form of the input.
    """
    errors = error.errors()
    first_path = _field_path(errors[0]["loc"])
    of_field = [other for other in errors if _field_path(other["loc"])[: len(first_path)] == first_path]
    rules = [other for other in of_field if other["type"] == "value_error"]
    first = rules[0] if rules else max(of_field, key=lambda other: len(_field_path(other["loc"])))
    where = shortened(".".join(map(str, _field_path(first["loc"]))), 120)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{did_you_mean(str(first['loc'][-1]), field_names(first['loc'][:-1]))}"
    elif first["type"] == "missing":
        message = "missing: a config file spells out every field that shapes numbers"
    elif first["type"] == "model_type":
        message = f"is not a section: write {{field: value}} (got {quoted(first['input'])})"
    elif first["type"] == "tuple_type":
        value = first["input"]
        message = f"is not a list: write [{shortened(value) if isinstance(value, str) else quoted(value)}]"
    elif where and not isinstance(first["input"], Mapping):
        message = f"{message} (got {quoted(first['input'])})"
    message = shortened(message, _LONGEST_MESSAGE)
    return f"{where}: {message}" if where else message


def _field_path(location: Sequence[str | int]) -> list[str | int]:
    """Return the path of the field of an error, without pydantic's names for the alternatives of a field."""
    return [part for part in location if isinstance(part, int) or (part not in _UNION_TAGS and "[" not in part)]
