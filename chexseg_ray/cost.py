"""What a step costs, from its config alone: FLOPs of its networks, and seconds at a stated rate."""

from collections.abc import Mapping

from chexseg_ray.artifacts import Step

# GFLOP (2 x multiply-adds) of one forward pass of one 320 px image
_FORWARD = {"densenet121": 11.6, "resnet18": 7.4, "deeplabv3plus": 14.3, "irnet": 25.6}
_TRAINING = 3  # forward and backward, in forward passes


def step_flops(step: Step, num_images: Mapping[str, int]) -> float:
    """FLOPs of one step.

    Args:
        step: any step.
        num_images: images of each split, as far as they are known.
    """
    config = step.config
    if step.name == "classifier":
        return float(_flops(config["architecture"], config["size"]) * _TRAINING * config["batch_size"] * config["num_updates"])
    if step.name == "segmentation":
        own = num_images.get("validation", 40) * config["num_validations"] + num_images.get("expert_train", 60)
        updates = _TRAINING * config["batch_size"] * config["num_updates"]
        return float(_flops("deeplabv3plus", config["size"]) * (updates + own))
    if step.name == "irnet":  # the trunk is frozen: its backward pass costs nothing
        return float(_flops("irnet", config["size"]) * config["batch_size"] * config["num_updates"])
    if step.name == "propagation":
        passes = 2 if config["flip_average"] else 1
        return _flops("irnet", step.inputs["irnet"].config["size"]) * passes * sum(num_images.get(split, 100) for split in config["splits"])
    if step.name == "cams":
        classifier = step.inputs["classifier"].config
        return _flops(classifier["architecture"], classifier["size"]) * sum(num_images.get(split, 100) for split in config["splits"])
    if step.name == "evaluation":
        return _flops("deeplabv3plus", config["size"]) * num_images.get("test", 100)
    return 0.0


def _flops(network: str, size: int) -> float:
    return _FORWARD[network] * 1e9 * (size / 320) ** 2
