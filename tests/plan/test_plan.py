"""The plan of the paper's whole experiment, without any data."""

from pathlib import Path

import pytest

from chexseg_ray.config.parse import load_config
from chexseg_ray.plan.lines import plan_lines
from chexseg_ray.plan.plan import PlannedStep, known_sizes, plan
from chexseg_ray.plan.schedule import Machine, wall_hours
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study
from chexseg_ray.study.points import named_points
from chexseg_ray.study.sources import load_plan
from chexseg_ray.sweep.trials import longest_first

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper.yaml"
CONFIG = load_config(PAPER)


@pytest.fixture(scope="module")
def study() -> Study:
    found, source, absent = load_plan(CONFIG)
    assert source is None
    assert len(absent) == 1
    assert "data.root=data" in absent[0]
    return found


@pytest.fixture(scope="module")
def planned(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[PlannedStep]:
    store = Store.open(str(tmp_path_factory.mktemp("empty")))
    return plan(study, store, CONFIG, known_sizes(study, store, CONFIG))


def test_the_paper_is_40_settings_and_120_trainings_of_the_132_that_its_tables_name(study: Study) -> None:
    assert len(named_points(CONFIG)) == 132
    assert len(study.points) == 120
    assert len({step.inputs["segmentation"].address for _, step in study.points}) == 120
    settings = {point.setting for point, _ in study.points}
    assert len(settings) == 40
    assert {point.trial for point, _ in study.points} == {0, 1, 2}


def test_each_table_of_the_paper_is_there(study: Study) -> None:
    found = {(p.method, p.p, p.init, p.weak_n) for p, _ in study.points}
    methods, inits = ("gradcam", "irnet"), ("random", "imagenet", "moco", "chexpert")
    fractions = (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9)
    table_1 = {(m, p, "chexpert", 100) for m in methods for p in fractions} | {(None, 1.0, "chexpert", 0)}
    figure_3a = {(None, 1.0, init, 0) for init in inits}
    table_2 = {(m, 0.0, init, n) for m in methods for init in inits for n in (100, 2000, 20000)}
    assert found == table_1 | figure_3a | table_2


def test_upstream_is_made_once(study: Study) -> None:
    names = [step.name for step in study.upstream()]
    expected = {"classifier": 2, "moco": 1, "irnet": 1, "cams": 1, "propagation": 1, "pseudo_masks": 2, "encoder": 3}
    assert {name: names.count(name) for name in expected} == expected


def test_every_point_of_one_size_of_weak_set_has_the_same_updates_and_rate(study: Study) -> None:
    seen = {
        (p.weak_n, s.inputs["segmentation"].config["num_updates"], s.inputs["segmentation"].config["learning_rate"])
        for p, s in study.points
    }
    assert seen == {(0, 620, 1e-3), (100, 620, 1e-3), (2000, 5400, 1e-3), (20000, 50400, 1e-4)}


def test_its_cost_is_what_the_reference_reckons(planned: list[PlannedStep]) -> None:
    def petaflops(name: str) -> float:
        return sum(item.cost.flops for item in planned if item.step.name == name) / 1e15

    assert petaflops("segmentation") == pytest.approx(465, rel=0.1)  # 412 + 41 + 11
    assert petaflops("classifier") == pytest.approx(38, rel=0.1)  # 23 + 15
    assert petaflops("moco") == pytest.approx(130, rel=0.1)
    assert petaflops("cams") == pytest.approx(2.6, rel=0.1)
    images = sum(item.cost.written for item in planned if item.step.name == "images")
    assert images == pytest.approx(23e9 * 0.7, rel=0.1)
    cams = next(item for item in planned if item.step.name == "cams")
    assert cams.cost.written / cams.cost.images == pytest.approx(2040)


def test_the_plan_prints_matrix_sharing_and_cost(study: Study, planned: list[PlannedStep], tmp_path: Path) -> None:
    text = "\n".join(plan_lines(planned, study, Store.open(str(tmp_path)), CONFIG, {"weak": 223414, "test": 499}))
    assert "0 steps are built, 260 are missing" in text
    assert "\nimages: weak 223,414, test 499\n" in text
    assert "40 settings, 120 trainings (the grids list 132; 12 are repeats)" in text
    row = (
        "gradcam            chexpert  100     all      deeplabv3plus/resnet18  "
        "0 (3)  0.2 (3)  0.4 (3)  0.6 (3)  0.8 (3)  0.85 (3)  0.9 (3)"
    )
    assert row in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["irnet"]
    assert "114 of 120" in text, "the weak images serve every training but the 12 - 6 of p = 1"
    for column in ("PFLOP", "written", "GPU-hours", "CPU-hours", "USD"):
        assert column in lines["stage"]
    total = next(line.split() for line in text.splitlines() if line.startswith("  all "))
    money = float(total[-3]) * 1.0 + float(total[-2]) * 0.05
    assert float(total[-1]) == pytest.approx(money, abs=0.02), "money at the stated rates"


def test_the_longest_trainings_start_first(study: Study) -> None:
    order = [point.weak_n for point, _ in longest_first(study.points)]
    assert set(order[48:]) == {0, 100}
    assert order[:24] == [20000] * 24
    assert order[24:48] == [2000] * 24


def test_a_split_of_unknown_size_is_said(tmp_path: Path) -> None:
    config = load_config(PAPER, ["compute.rates.images={weak: 10, test: 4}"])
    found, _, _ = load_plan(config)
    assert known_sizes(found, Store.open(str(tmp_path)), config) == {"weak": 10, "test": 4}


def test_more_gpus_take_less_time_down_to_what_cannot_be_shared(study: Study, planned: list[PlannedStep]) -> None:
    one, eight, many = (wall_hours(planned, study, CONFIG, Machine(gpus, 8 * gpus)) for gpus in (1, 8, 64))
    work = sum(item.gpu_hours for item in planned)
    assert work < one < work + sum(item.cpu_hours for item in planned)
    assert one > eight > many
    chain = sum(item.gpu_hours for item in planned if item.step.name in ("classifier", "moco", "irnet"))
    longest = max(item.gpu_hours for item in planned if item.step.name == "segmentation")
    assert many > chain + longest
    assert eight > work / 8


def test_trials_that_ask_for_half_a_gpu_run_two_at_a_time_at_half_speed(tmp_path: Path) -> None:
    one = "sweep.also=[] sweep.p=[0.9] sweep.method=[gradcam] sweep.init=[random] sweep.weak_n=[2000] sweep.trials=4"
    config = load_config(PAPER, one.split())
    found, _, _ = load_plan(config)
    store = Store.open(str(tmp_path))
    planned = plan(found, store, config, known_sizes(found, store, config))
    missing = [item for item in planned if item.step.name in ("segmentation", "evaluation")]
    each = sum(item.gpu_hours + item.cpu_hours for item in missing) / 4
    assert wall_hours(missing, found, config, Machine(1, 8)) == pytest.approx(4 * each)
    assert wall_hours(missing, found, config, Machine(2, 16)) == pytest.approx(2 * each)


def test_a_machine_with_fewer_cpus_than_threads_gains_nothing_by_threads(tmp_path: Path) -> None:
    demo = PAPER.with_name("demo.yaml")

    def hours(cpus: int, *overrides: str) -> float:
        config = load_config(demo, overrides)
        found, _, _ = load_plan(config)
        store = Store.open(str(tmp_path))
        steps = plan(found, store, config, known_sizes(found, store, config))
        return wall_hours(steps, found, config, Machine(0, cpus))

    one = hours(1)
    assert hours(1, "compute.segmentation={threads: 4}") == pytest.approx(one)
    assert hours(1, "compute.segmentation={num_cpus: 0.5}") == pytest.approx(one, rel=0.05), "two at half the speed"
    assert hours(1, "compute.classifier={threads: 8}") == pytest.approx(one)
    assert hours(2) < one
