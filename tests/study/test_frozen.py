"""Config files of an earlier version load, and name the steps that they named then."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chexseg_ray.config.parse import load_config, parse_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.study.graph import study_graph
from chexseg_ray.study.sources import SOURCE_FIELDS, encoder_files

FROZEN = Path(__file__).resolve().parents[1] / "frozen"
WANTED: dict[str, list[str]] = json.loads((FROZEN / "fingerprints.json").read_text(encoding="utf-8"))


def addresses(config: StudyConfig) -> list[str]:
    """Every step's address when each source and each file of weights has the hash "0"."""
    sources = dict.fromkeys(SOURCE_FIELDS, "0") if config.data.root is not None else {}
    return [step.address for step in study_graph(config, sources, dict.fromkeys(encoder_files(config), "0")).steps()]


def as_yaml(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes both."""
    if isinstance(value, dict):
        return {key: as_yaml(item) for key, item in value.items()}
    return [as_yaml(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("place", WANTED)
def test_a_config_file_of_commit_01ca184_names_the_same_steps(place: str) -> None:
    assert addresses(load_config(FROZEN / Path(place).name)) == WANTED[place]


@pytest.mark.parametrize("place", WANTED)
def test_a_config_file_that_spells_out_every_default_names_the_same_steps(place: str) -> None:
    whole = as_yaml(load_config(FROZEN / Path(place).name).model_dump(mode="python"))
    assert addresses(parse_config(yaml.safe_dump(whole, sort_keys=False))) == WANTED[place]


def test_there_are_580_addresses() -> None:
    assert sum(map(len, WANTED.values())) == 580
