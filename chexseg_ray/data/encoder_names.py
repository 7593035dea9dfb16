"""Which names of encoders may be built; here, as pseudo masks, pretraining and segmentation all build encoders."""

import difflib

from chexseg_ray.errors import shortened


def check_encoder_name(name: str) -> None:
    """Refuse what is neither the name of an encoder of smp nor of a network that timm lists.

    timm takes other names too, in any case of letters, for which it looks into a folder or connects to a hub:
    `hf-hub:...`, `hf_hub:...`, `local-dir:...`. It lists none of them.

    Args:
        name: smp's name, or `tu-` and timm's, which may end with the tag of its weights (`tu-resnet18.a1_in1k`).

    Raises:
        ValueError: it is neither; the message names it.
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders

    bare = name.removeprefix("tu-")
    if name.startswith("timm-"):
        raise ValueError(f"{shortened(name)}: smp has given up these names: write tu-{shortened(name[5:])}")
    if bare == name:
        known, listed = list(encoders), name in encoders
    else:
        known = [f"tu-{model}" for model in timm.list_models()]
        listed = name in known or bare in timm.list_models(pretrained=True)
    if listed and ":" not in name:
        return
    near = difflib.get_close_matches(name[:60], known, n=1, cutoff=0.6)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{shortened(name)!r} is neither an encoder of smp nor tu- and a network that timm lists{guess}")
