"""Estimates the cost of a step from its config: FLOPs of networks, CPU seconds of everything else, bytes written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chexseg_ray.errors import InputError
from chexseg_ray.store.step import Step

# GFLOP (2 x multiply-adds) of one forward pass of one 320 px image, and million weights (tests count both)
_FORWARD = {"densenet121": 11.6, "resnet18": 7.4, "resnet50": 16.7, "deeplabv3plus/resnet18": 14.3, "irnet": 25.6}
_WEIGHTS = {"densenet121": 7.0, "resnet18": 11.2, "resnet50": 23.5, "deeplabv3plus/resnet18": 12.3, "irnet": 23.6}
# What a GPU sustains with other networks, in units of what it does in a segmentation network's training: DenseNet121 is
# bound by memory, IRNet's losses by look-ups, and a random walk counts no FLOPs (benchmarks/gpu.py on an H100)
_GPU_SHARE = {"densenet121": 0.47, "irnet": 0.2, "resnet18": 1.3}
_CAMS_SHARE, _PROPAGATION_SHARE = 0.49, 0.5
_IRNET_LOSSES = 0.17  # of the trunk's forward pass, on a CPU (benchmarks/affinity_loss.py)
_TRAINING = 3  # forward and backward, in forward passes
_RLE_BYTES = 90  # one pseudo mask in Parquet
_MASK_SECONDS = 0.006  # ten pseudo masks of one image
_DRAW_SECONDS = 0.03  # one phantom
_EVALUATED_SECONDS = 0.09  # counts of one test image (benchmarks/evaluation.py)
_COMPARED_SECONDS = 0.3  # another reader's counts of one test image
_UNKNOWN = 100  # images of a split of unknown size

Sizes = Mapping[str, int]  # number of images of each split, as far as it is known


@dataclass(frozen=True)
class Cost:
    """The cost of one step, or of several.

    Args:
        flops: FLOPs of the networks.
        cpu_seconds: seconds of one CPU for everything else.
        written: bytes written to the store.
        images: images passed through a network or trained on, with repetitions.
        gpu_flops: FLOPs of a segmentation network's training that take a GPU as long.
    """

    flops: float = 0.0
    cpu_seconds: float = 0.0
    written: float = 0.0
    images: float = 0.0
    gpu_flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.cpu_seconds + other.cpu_seconds,
            self.written + other.written,
            self.images + other.images,
            self.gpu_flops + other.gpu_flops,
        )


def step_cost(step: Step, sizes: Sizes, decode_seconds: float) -> Cost:
    """Estimate the cost of one step; a kind that is missing in COSTS costs nothing.

    Args:
        step: any step.
        sizes: number of images of each split, as far as it is known.
        decode_seconds: seconds that one CPU takes to decode an image.
    """
    if step.name == "images":
        return _images(step, sizes, decode_seconds)
    return COSTS[step.name](step, sizes) if step.name in COSTS else Cost()


def _images_of(step: Step, sizes: Sizes) -> float:
    """Return the number of images of the splits that a step names."""
    splits = step.config["splits"] if "splits" in step.config else [step.config["split"]]
    return float(sum(sizes.get(split, _UNKNOWN) for split in splits))


def _phantom(step: Step, sizes: Sizes) -> Cost:
    config = step.config
    drawn = 1.7 * config["num_train_patients"] + config["num_expert_images"] + config["num_test_images"]
    return Cost(cpu_seconds=_DRAW_SECONDS * drawn, written=0.3 * config["long_side"] ** 2 * drawn, images=drawn)


def _manifest(step: Step, sizes: Sizes) -> Cost:
    images = _images_of(step, sizes)
    bytes_per_image = 60 if step.config["split"] == "weak" else 700 * len(step.config["pathologies"])
    return Cost(written=bytes_per_image * images, images=images)


def _images(step: Step, sizes: Sizes, decode_seconds: float) -> Cost:
    images = _images_of(step, sizes)
    written = 0.7 * step.config["size"] ** 2 * images  # zstd takes 0.3 off an X-ray
    return Cost(cpu_seconds=decode_seconds * images, written=written, images=images)


def _encoder(step: Step, sizes: Sizes) -> Cost:
    return Cost(written=4e6 * _weights(step.config["architecture"]))


def _training(step: Step, network: str, passes: float, validated: float = 0.0) -> Cost:
    """Return the cost of a training: `passes` forward passes per image, and one for each of `validated` images."""
    seen = float(step.config["batch_size"] * step.config["num_updates"])
    flops = network_flops(network, step.config["size"]) * (passes * seen + validated)
    gpu_flops = flops / _GPU_SHARE.get(network, 1.0)
    return Cost(flops, written=4e6 * _weights(network), images=seen, gpu_flops=gpu_flops)


def _classifier(step: Step, sizes: Sizes) -> Cost:
    validations = -(-step.config["num_updates"] // step.config["validate_every"])
    validated = validations * sum(sizes.get(split, 0) for split in step.config["validation_splits"])
    return _training(step, step.config["architecture"], _TRAINING, validated)


def _moco(step: Step, sizes: Sizes) -> Cost:
    return _training(step, step.config["architecture"], _TRAINING + 1)  # keys cost a forward pass more


def _irnet(step: Step, sizes: Sizes) -> Cost:
    return _training(step, "irnet", 1 + _IRNET_LOSSES)  # the trunk is frozen: its backward pass costs nothing


def _segmentation(step: Step, sizes: Sizes) -> Cost:
    validated = sizes.get("validation", 40) * step.config["num_validations"] + sizes.get("expert_train", 60)
    return _training(step, _network(step), _TRAINING, validated)


def _cams(step: Step, sizes: Sizes) -> Cost:
    images, classifier = _images_of(step, sizes), step.inputs["classifier"].config
    grid = classifier["size"] // (16 if step.config["fine_grid"] else 32)
    flops = network_flops(classifier["architecture"], classifier["size"]) * images
    return Cost(flops, written=_map_bytes(step, grid) * images, images=images, gpu_flops=flops / _CAMS_SHARE)


def _propagation(step: Step, sizes: Sizes) -> Cost:
    images, size = _images_of(step, sizes), step.inputs["irnet"].config["size"]
    flops = network_flops("irnet", size) * (2 if step.config["flip_average"] else 1) * images
    gpu_flops = flops / _PROPAGATION_SHARE
    return Cost(flops, written=_map_bytes(step, size // 4) * images, images=images, gpu_flops=gpu_flops)


def _map_bytes(step: Step, grid: int) -> int:
    """Return the bytes of the maps and probabilities of one image."""
    return len(step.config["pathologies"]) * (2 * grid**2 + 4)


def _pseudo_masks(step: Step, sizes: Sizes) -> Cost:
    images = float(sizes.get("weak", _UNKNOWN))
    written = _RLE_BYTES * len(step.config["pathologies"]) * images
    return Cost(cpu_seconds=_MASK_SECONDS * images, written=written, images=images)


def _benchmark(step: Step, sizes: Sizes) -> Cost:
    return _counted(step, sizes, _COMPARED_SECONDS)


def _evaluation(step: Step, sizes: Sizes) -> Cost:
    counted = _counted(step, sizes, _EVALUATED_SECONDS)
    flops = network_flops(_network(step.inputs["segmentation"]), step.config["size"]) * counted.images
    return counted + Cost(flops, gpu_flops=flops)


def _counted(step: Step, sizes: Sizes, seconds: float) -> Cost:
    images = float(sizes.get("test", _UNKNOWN))
    return Cost(cpu_seconds=seconds * images, written=2 * 10 * len(step.config["pathologies"]) * images, images=images)


COSTS: dict[str, Callable[[Step, Sizes], Cost]] = {
    "phantom": _phantom,
    "manifest": _manifest,
    "encoder": _encoder,
    "classifier": _classifier,
    "moco": _moco,
    "cams": _cams,
    "irnet": _irnet,
    "propagation": _propagation,
    "pseudo_masks": _pseudo_masks,
    "segmentation": _segmentation,
    "evaluation": _evaluation,
    "benchmark": _benchmark,
}


def _network(step: Step) -> str:
    return f"{step.config['architecture']}/{step.config['encoder']}"


def network_flops(network: str, size: int) -> float:
    """Return the FLOPs of one forward pass of one image.

    Args:
        network: `encoder`, `architecture/encoder` or `irnet`.
        size: side length of the image in pixels.

    Raises:
        InputError: smp cannot build the network.
    """
    return _measured(network)[0] * 1e9 * (size / 320) ** 2


def _weights(network: str) -> float:
    return _measured(network)[1]


def _measured(network: str) -> tuple[float, float]:
    """Return GFLOP at 320 px and million weights; a network that is not in the table is built, which imports torch."""
    if network not in _FORWARD:
        from chexseg_ray.segmentation.network import count_network

        try:
            _FORWARD[network], _WEIGHTS[network] = count_network(network, 320)
        except ValueError as error:
            raise InputError(f"segmentation.architecture, segmentation.encoder: {error}: choose others") from None
    return _FORWARD[network], _WEIGHTS[network]
