"""The typed settings of steps: every kind has them, and their defaults are those of the config."""

import dataclasses
import importlib
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from studies import IRNET, TINY

from chexseg_ray.config.parse import load_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.study.graph import prediction, study_graph
from chexseg_ray.study.steps import KINDS, module_of


def config_defaults(model: type[BaseModel] = StudyConfig) -> dict[str, list[Any]]:
    """The defaults of the fields of all sections but compute and report, by the fields' names."""
    found: dict[str, list[Any]] = {}
    for name, field in model.model_fields.items():
        inner = [
            kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)
        ]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        for section in sections if name not in ("compute", "report") else []:
            for inner_name, defaults in config_defaults(section).items():
                found.setdefault(inner_name, []).extend(defaults)
        if not sections and field.default is not PydanticUndefined:
            found.setdefault(name, []).append(field.default)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_default_of_a_steps_settings_is_the_configs(name: str) -> None:
    """A field that still has its default is not hashed, so the step must take the same value."""
    defaults = config_defaults()
    for field in dataclasses.fields(importlib.import_module(module_of(name)).Settings):
        if field.name in defaults and field.default is not dataclasses.MISSING:
            assert all(default == field.default for default in defaults[field.name]), field.name


def test_the_settings_take_the_configs_of_all_steps() -> None:
    config = load_config(TINY, [IRNET, "sweep.init=[random, moco, chexpert]", "sweep.p=[0.5, 1.0]"])
    study = study_graph(config, {})
    steps = [*study.steps(), prediction(study.points[0][1])]
    assert {step.name for step in steps} == set(KINDS) - {"encoder"}
    for step in steps:
        settings = importlib.import_module(module_of(step.name)).Settings(**step.config)
        assert {name: getattr(settings, name) for name in step.config} == dict(step.config)
