"""What a step costs, from its config alone: FLOPs of its networks, CPU seconds of what is no network, bytes that it writes."""

from collections.abc import Mapping
from dataclasses import dataclass

from chexseg_ray.artifacts import Step
from chexseg_ray.errors import InputError

# GFLOP (2 x multiply-adds) of one forward pass of one 320 px image, and million weights (tests count both)
_FORWARD = {"densenet121": 11.6, "resnet18": 7.4, "resnet50": 16.7, "deeplabv3plus/resnet18": 14.3, "irnet": 25.6}
_WEIGHTS = {"densenet121": 7.0, "resnet18": 11.2, "resnet50": 23.5, "deeplabv3plus/resnet18": 12.3, "irnet": 23.6}
_TRAINING = 3  # forward and backward, in forward passes
_RLE_BYTES, _MASK_SECONDS, _DRAW_SECONDS = 90, 0.006, 0.03  # a pseudo mask in Parquet; ten masks of an image; a phantom
_UNKNOWN = 100  # images of a split whose size nobody says


@dataclass(frozen=True)
class Cost:
    """FLOPs of networks; seconds of one CPU for everything else; bytes written; images passed through or trained on, with repetitions."""

    flops: float = 0.0
    cpu_seconds: float = 0.0
    written: float = 0.0
    images: float = 0.0


def step_cost(step: Step, num_images: Mapping[str, int], decode_seconds: float) -> Cost:
    """The cost of one step.

    Args:
        step: any step.
        num_images: images of each split, as far as they are known.
        decode_seconds: of one CPU, for one image.
    """
    config = step.config
    splits = config.get("splits") or ([config["split"]] if "split" in config else [])
    own = float(sum(num_images.get(split, _UNKNOWN) for split in splits))
    pathologies = len(config.get("pathologies", ()))
    if step.name == "phantom":
        drawn = 1.7 * config["num_train_patients"] + config["num_expert_images"] + config["num_test_images"]
        return Cost(cpu_seconds=_DRAW_SECONDS * drawn, written=0.3 * config["long_side"] ** 2 * drawn, images=drawn)
    if step.name == "manifest":
        return Cost(written=(60 if config["split"] == "weak" else 700 * pathologies) * own, images=own)
    if step.name == "images":
        return Cost(cpu_seconds=decode_seconds * own, written=0.7 * config["size"] ** 2 * own, images=own)  # zstd takes 0.3 off an X-ray
    if step.name == "encoder":
        return Cost(written=4e6 * _weights(config["architecture"]))
    if step.name in ("classifier", "moco", "irnet", "segmentation"):
        network, passes = _training(step)
        seen = float(config["batch_size"] * config["num_updates"])
        flops = network_flops(network, config["size"]) * (passes * seen + _validation_images(step, num_images))
        return Cost(flops, written=4e6 * _weights(network), images=seen)
    if step.name == "cams":
        classifier = step.inputs["classifier"].config
        grid = classifier["size"] // (16 if config["fine_grid"] else 32)
        flops = network_flops(classifier["architecture"], classifier["size"]) * own
        return Cost(flops, written=pathologies * (2 * grid**2 + 4) * own, images=own)
    if step.name == "propagation":
        size = step.inputs["irnet"].config["size"]
        flops = network_flops("irnet", size) * (2 if config["flip_average"] else 1) * own
        return Cost(flops, written=pathologies * (2 * (size // 4) ** 2 + 4) * own, images=own)
    if step.name == "pseudo_masks":
        weak = float(num_images.get("weak", _UNKNOWN))
        return Cost(cpu_seconds=_MASK_SECONDS * weak, written=_RLE_BYTES * pathologies * weak, images=weak)
    test = float(num_images.get("test", _UNKNOWN))
    if step.name == "benchmark":
        return Cost(cpu_seconds=0.3 * test, written=2 * 10 * pathologies * test, images=test)
    assert step.name == "evaluation", step.name
    trained = step.inputs["segmentation"].config
    flops = network_flops(_network(trained), config["size"]) * test
    return Cost(flops, cpu_seconds=0.2 * test, written=2 * 10 * pathologies * test, images=test)


def _network(config: Mapping[str, str]) -> str:
    return f"{config['architecture']}/{config['encoder']}"


def _training(step: Step) -> tuple[str, float]:
    """The network of a training, and what an image costs in it, in forward passes."""
    if step.name == "segmentation":
        return _network(step.config), _TRAINING
    if step.name == "irnet":  # the trunk is frozen: its backward pass costs nothing
        return "irnet", 1
    return step.config["architecture"], _TRAINING + (step.name == "moco")  # MoCo's keys cost a forward pass more


def _validation_images(step: Step, num_images: Mapping[str, int]) -> float:
    if step.name == "segmentation":
        return float(num_images.get("validation", 40) * step.config["num_validations"] + num_images.get("expert_train", 60))
    if step.name == "classifier":
        passes = -(-step.config["num_updates"] // step.config["validate_every"])
        return float(passes * sum(num_images.get(split, 0) for split in step.config["validation_splits"]))
    return 0.0


def network_flops(network: str, size: int) -> float:
    """FLOPs of one forward pass of one image of size x size: of `encoder`, `architecture/encoder` or `irnet`."""
    return _measured(network)[0] * 1e9 * (size / 320) ** 2


def _weights(network: str) -> float:
    return _measured(network)[1]


def _measured(network: str) -> tuple[float, float]:
    """GFLOP at 320 px and million weights; a network that is not in the table is counted, which imports torch."""
    if network not in _FORWARD:
        from chexseg_ray.segmentation.network import count_network

        try:
            _FORWARD[network], _WEIGHTS[network] = count_network(network, 320)
        except ValueError as error:
            raise InputError(f"segmentation.architecture, segmentation.encoder: {error}: choose others") from None
    return _FORWARD[network], _WEIGHTS[network]
