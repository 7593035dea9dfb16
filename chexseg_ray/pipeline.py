"""The study as a graph of Steps: one small function a step. No Ray, no I/O.

Each function picks exactly the config fields that shape the step's numbers. Splits are steps of their own, so that the
test split is an ancestor of `evaluation`, `benchmark` and `prediction` alone (tests/test_pipeline.py walks the graph).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from itertools import product
from typing import Any, TypeVar

from chexseg_ray.artifacts import Step
from chexseg_ray.config import EncoderClassifierConfig, GridConfig, StudyConfig, SweepConfig, for_weak_n

T = TypeVar("T")

TRIAL_STEPS = frozenset({"segmentation", "evaluation"})  # each sweep point has its own; all others are shared
EXPERT_SPLITS = ("expert_train", "validation")

PAPER_NETWORK = ("deeplabv3plus", "resnet18")  # not named in a point's label
MADE_HERE = ("random", "imagenet", "moco", "chexpert")  # any other init is the path of a file
DEEPLABS = ("deeplabv3", "deeplabv3plus")

# bumped when the algorithm of a step changes its numbers
VERSIONS = {
    "phantom": 1, "manifest": 1, "images": 1, "encoder": 2, "classifier": 2, "moco": 1, "cams": 1, "irnet": 1, "propagation": 1, "pseudo_masks": 2,
    "segmentation": 2, "evaluation": 1, "benchmark": 1, "prediction": 1,
}  # fmt: skip


@dataclass(frozen=True)
class SweepPoint:
    """One training of the sweep. `method` is None and `weak_n` 0 where no pseudo mask is drawn (p = 1)."""

    method: str | None
    p: float
    init: str
    weak_n: int
    num_expert: int | None
    architecture: str
    encoder: str
    trial: int

    def canonical(self) -> "SweepPoint":
        """Points that are the same training become equal."""
        return replace(self, method=None, weak_n=0) if self.p == 1 else self

    @property
    def label(self) -> str:
        parts = [self.method or "expert", f"p={self.p}", f"init={self.init}"]
        parts += [f"weak_n={self.weak_n}"] if self.weak_n else []
        parts += [f"num_expert={self.num_expert}"] if self.num_expert is not None else []
        parts += [f"{self.architecture}/{self.encoder}"] if (self.architecture, self.encoder) != PAPER_NETWORK else []
        return " ".join([*parts, *([f"trial={self.trial}"] if self.trial >= 0 else [])])


@dataclass(frozen=True)
class Study:
    """All sweep points with the evaluation step of each, and that of another reader's masks; everything else hangs below."""

    points: tuple[tuple[SweepPoint, Step], ...]
    benchmark: Step | None = None

    def steps(self) -> list[Step]:
        """Every step once, inputs before what is made from them."""
        seen: dict[str, Step] = {}
        for last in (*(evaluation for _, evaluation in self.points), *([self.benchmark] if self.benchmark else [])):
            for step in (*last.ancestors(), last):
                seen.setdefault(step.address, step)
        return list(seen.values())

    def upstream(self) -> list[Step]:
        """The steps that trials share: all but segmentation and evaluation."""
        return [step for step in self.steps() if step.name not in TRIAL_STEPS]


def _step(name: str, config: Mapping[str, Any], **inputs: Step) -> Step:
    return Step(name, VERSIONS[name], config, inputs)


def _read(config: Mapping[str, Any], encoder: Mapping[str, Step]) -> dict[str, Any]:
    """A config without the normalisation when encoder weights bring their own."""
    return {name: value for name, value in config.items() if name != "normalisation" or not encoder}


def study_graph(config: StudyConfig, sources: Mapping[str, str], encoder_files: Mapping[str, str] | None = None) -> Study:
    """The graph of a study.

    Args:
        config: the parsed config.
        sources: sha256 of each CSV and JSON source by its field of `data` (weak_csv, expert_masks, ...), none for the phantom.
        encoder_files: sha256 of each file of encoder weights that the config names, by its path.
    """
    return _Graph(config, sources, encoder_files or {}).study()


def _once(make: Callable[..., T]) -> Callable[..., T]:
    """A method of _Graph that makes each step once, so that 10,000 points share the steps above them as objects too."""

    @wraps(make)
    def shared(self: "_Graph", *arguments: Any) -> T:
        key = (make.__name__, *arguments)
        if key not in self.made:
            self.made[key] = make(self, *arguments)
        found: T = self.made[key]
        return found

    return shared


class _Graph:
    def __init__(self, config: StudyConfig, sources: Mapping[str, str], encoder_files: Mapping[str, str]) -> None:
        self.made: dict[tuple[Any, ...], Any] = {}
        self.config = config
        self.sources = sources
        self.encoder_files = encoder_files
        phantom = config.data.phantom.model_dump(mode="json")
        self.phantom = {"phantom": _step("phantom", phantom)} if config.data.root is None else {}

    def study(self) -> Study:
        points = sweep_points(self.config)
        return Study(tuple((point, self.evaluation(point)) for point in points), self.benchmark())

    @_once
    def manifest(self, split: str) -> Step:
        data = self.config.data
        own_test = split == "test" and data.test_csv is not None
        fields = ("test_csv", "test_masks") if own_test else ("weak_csv",) if split == "weak" else ("expert_csv", "expert_masks")
        shared: dict[str, Any] = {"split": split, "pathologies": list(data.pathologies), "views": list(data.views)}
        if not own_test and split != "weak":
            shared |= {"num_validation": data.num_validation, "num_test": data.num_test, "split_seed": data.split_seed}
        # the phantom's files are named by its own step, a user's by their content
        shared |= {"columns": data.names_in_files} if data.columns else {}
        identity = {"files": [getattr(data, f) for f in fields]} if self.phantom else {"sha256": {f: self.sources[f] for f in fields}}
        return _step("manifest", {**shared, **identity}, **self.phantom)

    @_once
    def images(self, split: str) -> Step:
        return _step("images", {"split": split, "size": self.config.data.image_size}, manifest=self.manifest(split))

    def _split_inputs(self, *splits: str) -> dict[str, Step]:
        out = {}
        for split in splits:
            if split == "weak" or split == "test" or self.config.data.expert_csv is not None:
                out[f"manifest_{split}"], out[f"images_{split}"] = self.manifest(split), self.images(split)
        return out

    @_once
    def encoder(self, init: str, architecture: str) -> dict[str, Step]:
        """What makes the weights of an initialisation: nothing for random, a training of this study, or a file."""
        if init == "random":
            return {}
        if init == "chexpert":
            return {"encoder": self.classifier("encoder_classifier", architecture)}
        if init == "moco":
            return {"encoder": self.moco(architecture)}
        path = self.config.pretraining.imagenet_files.get(architecture) if init == "imagenet" else init
        if path is None:
            return {"encoder": _step("encoder", {"architecture": architecture, "source": "imagenet"})}
        statistics = self.config.pretraining.normalisation.get(path)
        own: dict[str, Any] = {"normalisation": statistics} if statistics else {"trained_on": "imagenet"} if init == "imagenet" else {}
        own |= {"architecture": architecture, "source": "file", "sha256": self.encoder_files[path], "pathologies": list(self.config.data.pathologies)}
        return {"encoder": _step("encoder", own)}

    @_once
    def classifier(self, name: str, architecture: str) -> Step:
        section: EncoderClassifierConfig = getattr(self.config, name)
        config = section.model_dump(mode="json", exclude={"init", "architecture"})
        config |= {"architecture": architecture, "pathologies": list(self.config.data.pathologies), "size": self.config.data.image_size}
        inputs = self._split_inputs(*section.train_splits, *section.validation_splits)
        return _step("classifier", config, **inputs, **self.encoder(section.init, architecture))

    @_once
    def cam_classifier(self) -> Step:
        return self.classifier("classifier", self.config.classifier.architecture)

    @_once
    def moco(self, architecture: str) -> Step:
        section = self.config.moco
        config = section.model_dump(mode="json", exclude={"init"}) | {"architecture": architecture, "size": self.config.data.image_size}
        return _step("moco", config, **self._split_inputs(*section.train_splits), **self.encoder(section.init, architecture))

    @_once
    def cams(self) -> Step:
        """Of the weak images, and of the expert training images when thresholds are tuned on them: one pass, one set of actors."""
        config: dict[str, Any] = {**self.config.cams.model_dump(mode="json"), "pathologies": list(self.config.data.pathologies)}
        config["splits"] = ["weak", *(["expert_train"] if self.config.pseudo_masks.thresholds == "tuned" else [])]
        images = {f"images_{split}": self.images(split) for split in config["splits"]}
        return _step("cams", config, classifier=self.cam_classifier(), **images)

    def _gate(self) -> dict[str, Any]:
        section = self.config.pseudo_masks
        return {"gate": section.gate} | ({"gate_probability": section.gate_probability} if section.gate == "probability" else {})

    @_once
    def irnet(self) -> Step:
        """Trained on the weak images with their CAMs; an image is of use where its gate is open."""
        inference = {"encoder", "instance_wise", "random_walk", "flip_average"}
        config = self.config.irnet.model_dump(mode="json", exclude=inference)
        config |= {"pathologies": list(self.config.data.pathologies), "size": self.config.data.image_size, **self._gate()}
        inputs = {"cams": self.cams(), "images_weak": self.images("weak"), "manifest_weak": self.manifest("weak")}
        encoder = self.encoder(self.config.irnet.encoder, "resnet50")
        return _step("irnet", _read(config, encoder), **inputs, **encoder)

    @_once
    def propagation(self) -> Step:
        """The CAMs of the same splits, propagated."""
        section, cams = self.config.irnet, self.cams()
        config: dict[str, Any] = {
            "random_walk": section.random_walk.model_dump(mode="json"),
            "flip_average": section.flip_average,
            "instance_wise": section.instance_wise,
        }
        config |= {"foreground": section.foreground} if section.instance_wise else {}
        config |= {"pathologies": list(self.config.data.pathologies), "splits": cams.config["splits"], "batch_size": self.config.cams.batch_size}
        images = {f"images_{split}": self.images(split) for split in cams.config["splits"]}
        return _step("propagation", config, cams=cams, irnet=self.irnet(), **images)

    def pseudo_masks(self, point: SweepPoint) -> Step:
        own = point.num_expert is not None and self.config.pseudo_masks.thresholds == "tuned"
        return self._pseudo_masks(point.method, point.num_expert if own else None, point.trial if own else 0)

    @_once
    def _pseudo_masks(self, method: str, num_expert: int | None, trial: int) -> Step:
        section = self.config.pseudo_masks
        config: dict[str, Any] = {
            "method": method,
            "pathologies": list(self.config.data.pathologies),
            "size": self.config.data.image_size,
            "thresholds": section.thresholds,
            **self._gate(),
        }
        maps = self.propagation() if method == "irnet" else self.cams()
        inputs = {"cams": maps, "manifest": self.manifest("weak")}
        if section.thresholds == "tuned":
            config |= {"grid_step": section.grid_step, "num_expert": num_expert}
            config |= {} if num_expert is None else {"sweep_seed": self.config.sweep.seed, "trial": trial}
            inputs |= self._split_inputs("expert_train")
        elif section.thresholds == "fixed":
            config["fixed_threshold"] = section.fixed_threshold
        return _step("pseudo_masks", config, **inputs)

    def segmentation(self, point: SweepPoint) -> Step:
        section = self.config.segmentation
        elsewhere = {"learning_rate", "num_updates", "min_positives", *(() if point.architecture in DEEPLABS else ("output_stride", "atrous_rates"))}
        config = section.model_dump(mode="json", exclude=elsewhere)
        if section.thresholds == "tuned" or section.checkpoint == "best":
            config["min_positives"] = section.min_positives
        config |= {
            "architecture": point.architecture,
            "encoder": point.encoder,
            "learning_rate": for_weak_n(section.learning_rate, point.weak_n),
            "num_updates": for_weak_n(section.num_updates, point.weak_n),
            "pathologies": list(self.config.data.pathologies),
            "size": self.config.data.image_size,
            "p": point.p,
            "weak_n": point.weak_n,
            "num_expert": point.num_expert,
            "init": point.init if point.init in MADE_HERE else "file",
            "trial": point.trial,
            "sweep_seed": self.config.sweep.seed,
        }
        inputs = self._split_inputs(*EXPERT_SPLITS)
        if point.p < 1:
            inputs |= {"pseudo_masks": self.pseudo_masks(point), "images_weak": self.images("weak")}
        encoder = self.encoder(point.init, point.encoder)
        return _step("segmentation", _read(config, encoder), **inputs, **encoder)

    def evaluation(self, point: SweepPoint) -> Step:
        inputs = {"segmentation": self.segmentation(point), **self._split_inputs("test")}
        return _step("evaluation", {"pathologies": list(self.config.data.pathologies), "size": self.config.data.image_size}, **inputs)

    def benchmark(self) -> Step | None:
        """Another reader's masks of the test images, counted as predictions are."""
        data = self.config.data
        if data.benchmark_masks is None:
            return None
        config: dict[str, Any] = {"pathologies": list(data.pathologies), "size": data.image_size}
        config |= {"columns": data.names_in_files} if data.columns else {}
        config |= {"files": [data.benchmark_masks]} if self.phantom else {"sha256": self.sources["benchmark_masks"]}
        return _step("benchmark", config, **self._split_inputs("test"), **self.phantom)


def prediction(evaluation: Step) -> Step:
    """The masks that the network of a point gives the test images, in full; made of chosen points alone."""
    return _step("prediction", dict(evaluation.config), **evaluation.inputs)


def sweep_points(config: StudyConfig) -> list[SweepPoint]:
    """The canonical points of all grids, each once, in the config's order with trials innermost."""
    return list(dict.fromkeys(point.canonical() for point in named_points(config)))


def named_points(config: StudyConfig) -> list[SweepPoint]:
    """The points as the grids name them, some of them the same training."""
    s = config.sweep
    return [point for grid in [s, *(_completed(s, grid) for grid in s.also)] for point in _product(grid, config)]


def _completed(sweep: SweepConfig, grid: GridConfig) -> SweepConfig:
    return sweep.model_copy(update={axis: values for axis, values in grid if values is not None})


def _product(s: SweepConfig, config: StudyConfig) -> list[SweepPoint]:
    networks = config.segmentation.architectures, config.segmentation.encoders
    grid = product(s.method, *networks, s.init, s.weak_n, s.num_expert, s.p, range(s.trials))
    return [SweepPoint(m, p, i, n, e, a, b, t) for m, a, b, i, n, e, p, t in grid]
