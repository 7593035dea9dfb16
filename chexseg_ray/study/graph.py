"""The study as a graph of Steps, one small method per kind of step. No Ray, no I/O.

    phantom > manifest > images    once per split: weak, expert_train, validation, test

    images weak > classifier > cams > pseudo_masks                          method gradcam
                               cams > irnet > propagation > pseudo_masks    method irnet
    images expert_train            > pseudo_masks                           if thresholds are tuned
    images weak > classifier | moco | encoder (a file)                      initial weights of segmentation encoders

    images expert_train, images validation, initial weights,
    images weak, pseudo_masks (if p < 1)                     > segmentation    one per sweep point
    segmentation, images test > evaluation > the report
    segmentation, images test > prediction                                  for chosen points
    images test               > benchmark                                   another reader's masks

Each method picks exactly the config fields that shape the step's numbers. A field that still has its default ("as
before") is left out, so that addresses from earlier versions stay valid. The test split is an ancestor of evaluation,
benchmark and prediction only (tests/study/test_graph.py walks the graph).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.fields import Section, for_weak_n
from chexseg_ray.config.methods import METHODS
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.config.upstream import IRNET_ENCODER, NAMED_INITS, EncoderClassifierConfig
from chexseg_ray.store.step import Step
from chexseg_ray.study.points import sweep_points
from chexseg_ray.study.steps import KINDS, TRIAL_STEPS

T = TypeVar("T")
EXPERT_SPLITS = ("expert_train", "validation")
_DEEPLABS = ("deeplabv3", "deeplabv3plus")  # networks that read output_stride and atrous_rates


@dataclass(frozen=True)
class Study:
    """A study's steps.

    Args:
        points: each sweep point with its evaluation step; all other steps but the benchmark are ancestors of these.
        benchmark: the step of another reader's masks of the test images, if the config names them.
    """

    points: tuple[tuple[SweepPoint, Step], ...]
    benchmark: Step | None = None

    def steps(self) -> list[Step]:
        """Return every step once, each after its inputs."""
        seen: dict[str, Step] = {}
        ends = [evaluation for _, evaluation in self.points]
        if self.benchmark:
            ends.append(self.benchmark)
        for end in ends:
            for step in (*end.ancestors(), end):
                seen.setdefault(step.address, step)
        return list(seen.values())

    def upstream(self) -> list[Step]:
        """Return the steps that trials share: all but segmentation and evaluation."""
        return [step for step in self.steps() if step.name not in TRIAL_STEPS]


def study_graph(
    config: StudyConfig, sources: Mapping[str, str], encoder_files: Mapping[str, str] | None = None
) -> Study:
    """Make the graph of a study.

    Args:
        config: the parsed config.
        sources: sha256 of each CSV and JSON source by its field of `data` (weak_csv, expert_masks, ...); empty for
            phantoms.
        encoder_files: sha256 of each file of encoder weights that the config names, by its path.
    """
    return _Graph(config, sources, encoder_files or {}).study()


def prediction(evaluation: Step) -> Step:
    """Make the step that predicts full masks of the test images with a point's network; used for chosen points.

    Args:
        evaluation: the point's evaluation step.
    """
    return _step("prediction", dict(evaluation.config), **evaluation.inputs)


def _step(name: str, config: Mapping[str, Any], **inputs: Step) -> Step:
    return Step(name, KINDS[name].version, config, inputs)


def _hashed(section: Section, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return a section as JSON values, without the named fields and without fields that have their default."""
    return section.model_dump(mode="json", exclude=set(without), exclude_defaults=True)


def _without_normalisation(config: Mapping[str, Any], encoder: Mapping[str, Step]) -> dict[str, Any]:
    """Return a config without its normalisation if there are encoder weights, which have their own."""
    return {name: value for name, value in config.items() if name != "normalisation" or not encoder}


def _once(make: Callable[..., T]) -> Callable[..., T]:
    """Let a method of _Graph make each step once, so that 10,000 points share their ancestors as objects."""

    @wraps(make)
    def shared(self: "_Graph", *arguments: Any) -> T:
        key = (make.__name__, *arguments)
        if key not in self.made:
            self.made[key] = make(self, *arguments)
        found: T = self.made[key]
        return found

    return shared


class _Graph:
    """Makes the steps of one config; a method is named after the kind of step that it makes."""

    def __init__(self, config: StudyConfig, sources: Mapping[str, str], encoder_files: Mapping[str, str]) -> None:
        self.made: dict[tuple[Any, ...], Any] = {}
        self.config = config
        self.sources = sources
        self.encoder_files = encoder_files
        self.pathologies = list(config.data.pathologies)
        self.size = config.data.image_size
        self.phantom: dict[str, Step] = {}
        if config.data.root is None:
            assert config.data.phantom is not None
            self.phantom = {"phantom": _step("phantom", _hashed(config.data.phantom))}

    def study(self) -> Study:
        """Make the steps of all points, and the benchmark."""
        points = sweep_points(self.config)
        return Study(tuple((point, self.evaluation(point)) for point in points), self.benchmark())

    @_once
    def manifest(self, split: str) -> Step:
        """Make the list of a split's images. Phantom files are identified by their step, a user's by their content.

        Args:
            split: weak | expert_train | validation | test.
        """
        data = self.config.data
        config: dict[str, Any] = {"split": split, "pathologies": self.pathologies, "views": list(data.views)}
        if split == "weak":
            fields = ["weak_csv"]
        elif split == "test" and data.test_csv is not None:
            fields = ["test_csv", "test_masks"]
        else:
            fields = ["expert_csv", "expert_masks"]
            config |= {"num_validation": data.num_validation, "num_test": data.num_test, "split_seed": data.split_seed}
        return _step("manifest", config | self._columns() | self._files(*fields), **self.phantom)

    def _columns(self) -> dict[str, Any]:
        return {"columns": self.config.data.names_in_files} if self.config.data.columns else {}

    def _files(self, *fields: str) -> dict[str, Any]:
        if self.phantom:
            return {"files": [getattr(self.config.data, field) for field in fields]}
        return {"sha256": {field: self.sources[field] for field in fields}}

    @_once
    def images(self, split: str) -> Step:
        """Make the step that decodes the X-rays and expert masks of `split`."""
        allowed = list(self.config.data.allow_modalities)
        config = {"split": split, "size": self.size, **({"allow_modalities": allowed} if allowed else {})}
        return _step("images", config, manifest=self.manifest(split))

    def _split_inputs(self, *splits: str) -> dict[str, Step]:
        """Return manifest and images of the given splits, as far as the study has them."""
        inputs = {}
        for split in splits:
            if split in ("weak", "test") or self.config.data.expert_csv is not None:
                inputs[f"manifest_{split}"] = self.manifest(split)
                inputs[f"images_{split}"] = self.images(split)
        return inputs

    @_once
    def encoder(self, init: str, architecture: str) -> dict[str, Step]:
        """Make the input `encoder` of a network.

        Args:
            init: random | imagenet | chexpert | moco, or the path of a file.
            architecture: the encoder's name.

        Returns:
            {"encoder": the step that trains the weights, or reads them from a file}; empty for random weights.
        """
        if init == "random":
            return {}
        if init == "chexpert":
            return {"encoder": self.classifier("encoder_classifier", architecture)}
        if init == "moco":
            return {"encoder": self.moco(architecture)}
        path = self.config.pretraining.imagenet_files.get(architecture) if init == "imagenet" else init
        if path is None:
            return {"encoder": _step("encoder", {"architecture": architecture, "source": "imagenet"})}
        config: dict[str, Any] = {}
        if path in self.config.pretraining.normalisation:
            config["normalisation"] = self.config.pretraining.normalisation[path]
        elif init == "imagenet":
            config["trained_on"] = "imagenet"
        config |= {
            "architecture": architecture,
            "source": "file",
            "sha256": self.encoder_files[path],
            "pathologies": self.pathologies,
        }
        return {"encoder": _step("encoder", config)}

    @_once
    def classifier(self, name: str, architecture: str) -> Step:
        """Make an image-level classifier.

        Args:
            name: its section of the config, `classifier` or `encoder_classifier`.
            architecture: the network's name, which an `encoder_classifier` takes from the sweep.
        """
        section: EncoderClassifierConfig = getattr(self.config, name)
        config = _hashed(section, without=("init", "architecture"))
        config |= {"architecture": architecture, "pathologies": self.pathologies, "size": self.size}
        inputs = self._split_inputs(*section.train_splits, *section.validation_splits)
        return _step("classifier", config, **inputs, **self.encoder(section.init, architecture))

    @_once
    def moco(self, architecture: str) -> Step:
        """Make the training of MoCo with the encoder `architecture`."""
        section = self.config.moco
        config = _hashed(section, without=("init",)) | {"architecture": architecture, "size": self.size}
        return _step(
            "moco", config, **self._split_inputs(*section.train_splits), **self.encoder(section.init, architecture)
        )

    @_once
    def cams(self) -> Step:
        """Make the maps of the weak images and, if thresholds are tuned, of the expert training images.

        One step makes both, with the same actors.
        """
        splits = ["weak"]
        if self.config.pseudo_masks.thresholds == "tuned":
            splits.append("expert_train")
        config = {**_hashed(self.config.cams), "pathologies": self.pathologies, "splits": splits}
        classifier = self.classifier("classifier", self.config.classifier.architecture)
        return _step(
            "cams", config, classifier=classifier, **{f"images_{split}": self.images(split) for split in splits}
        )

    def _gate(self) -> dict[str, Any]:
        section = self.config.pseudo_masks
        if section.gate == "probability":
            return {"gate": section.gate, "gate_probability": section.gate_probability}
        return {"gate": section.gate}

    @_once
    def irnet(self) -> Step:
        """Make the IRNet that is trained on the weak images whose gate is open, with their CAMs."""
        inference = ("encoder", "instance_wise", "random_walk", "flip_average")
        config = _hashed(self.config.irnet, without=inference)
        config |= {"pathologies": self.pathologies, "size": self.size, **self._gate()}
        inputs = {"cams": self.cams(), "images_weak": self.images("weak"), "manifest_weak": self.manifest("weak")}
        encoder = self.encoder(self.config.irnet.encoder, IRNET_ENCODER)
        return _step("irnet", _without_normalisation(config, encoder), **inputs, **encoder)

    @_once
    def propagation(self) -> Step:
        """Make the propagated CAMs of all splits that have CAMs."""
        section, cams = self.config.irnet, self.cams()
        splits = cams.config["splits"]
        config: dict[str, Any] = {
            "random_walk": _hashed(section.random_walk),
            "flip_average": section.flip_average,
            "instance_wise": section.instance_wise,
            "pathologies": self.pathologies,
            "splits": splits,
            "batch_size": self.config.cams.batch_size,
        }
        if section.instance_wise:
            config["foreground"] = section.foreground
        images = {f"images_{split}": self.images(split) for split in splits}
        return _step("propagation", config, cams=cams, irnet=self.irnet(), **images)

    def pseudo_masks(self, point: SweepPoint) -> Step:
        """Make the masks of a point's method.

        All points share one step, unless thresholds are tuned on the expert subset of a trial.

        Args:
            point: a sweep point with p < 1.
        """
        if point.num_expert is None or self.config.pseudo_masks.thresholds != "tuned":
            return self._pseudo_masks(point.method, None, 0)
        return self._pseudo_masks(point.method, point.num_expert, point.trial)

    @_once
    def _pseudo_masks(self, method: str, num_expert: int | None, trial: int) -> Step:
        section = self.config.pseudo_masks
        config: dict[str, Any] = {
            "method": method,
            "pathologies": self.pathologies,
            "size": self.size,
            "thresholds": section.thresholds,
            **self._gate(),
        }
        inputs = {"cams": getattr(self, METHODS[method].maps)(), "manifest": self.manifest("weak")}
        if section.thresholds == "tuned":
            config |= {"grid_step": section.grid_step, "num_expert": num_expert}
            inputs |= self._split_inputs("expert_train")
            if num_expert is not None:
                config |= {"sweep_seed": self.config.sweep.seed, "trial": trial}
        elif section.thresholds == "fixed":
            config["fixed_threshold"] = section.fixed_threshold
        return _step("pseudo_masks", config, **inputs)

    def segmentation(self, point: SweepPoint) -> Step:
        """Make the segmentation training of `point`."""
        section = self.config.segmentation
        without = ["learning_rate", "num_updates", "min_positives"]  # set below
        if point.architecture not in _DEEPLABS:
            without += ["output_stride", "atrous_rates"]
        config = _hashed(section, without=without)
        if section.thresholds == "tuned" or section.checkpoint == "best":
            config["min_positives"] = section.min_positives
        config |= {
            "architecture": point.architecture,
            "encoder": point.encoder,
            "learning_rate": for_weak_n(section.learning_rate, point.weak_n),
            "num_updates": for_weak_n(section.num_updates, point.weak_n),
            "pathologies": self.pathologies,
            "size": self.size,
            "p": point.p,
            "weak_n": point.weak_n,
            "num_expert": point.num_expert,
            "init": point.init if point.init in NAMED_INITS else "file",
            "trial": point.trial,
            "sweep_seed": self.config.sweep.seed,
        }
        inputs = self._split_inputs(*EXPERT_SPLITS)
        if point.p < 1:
            inputs |= {"pseudo_masks": self.pseudo_masks(point), "images_weak": self.images("weak")}
        encoder = self.encoder(point.init, point.encoder)
        return _step("segmentation", _without_normalisation(config, encoder), **inputs, **encoder)

    def evaluation(self, point: SweepPoint) -> Step:
        """Make the evaluation of the network of `point` on the test split."""
        inputs = {"segmentation": self.segmentation(point), **self._split_inputs("test")}
        return _step("evaluation", {"pathologies": self.pathologies, "size": self.size}, **inputs)

    def benchmark(self) -> Step | None:
        """Make the comparison of another reader's masks of the test images; None if the config names no such file."""
        if self.config.data.benchmark_masks is None:
            return None
        config: dict[str, Any] = {"pathologies": self.pathologies, "size": self.size, **self._columns()}
        if self.phantom:
            config |= self._files("benchmark_masks")
        else:
            config["sha256"] = self.sources["benchmark_masks"]
        return _step("benchmark", config, **self._split_inputs("test"), **self.phantom)
