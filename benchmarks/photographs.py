"""A ResNet18 trained on photographs, as a file for sweep.init: a stand-in for ImageNet's weights where no hub can be reached.

    python benchmarks/photographs.py OUT.pth [updates, default 400]

It learns which of scikit-image's and scikit-learn's bundled pictures a crop is from (crops of 20 to 100 % of the area, mirrored, other
contrast, grey, 96 px; batch 32, Adam 1e-3 with cosine decay). Weights from pictures that are no X-rays, but of 27 pictures, not of 1.3 million.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
import sklearn
import torch
from machine import describe
from PIL import Image
from torchvision.models import resnet18

from chexseg_ray.data.normalisation import network_input

SIZE, BATCH = 96, 32


def photographs() -> list[Image.Image]:
    """The pictures of both packages that have something on them, grey."""
    folders = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    files = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    grey = [Image.open(path).convert("L") for path in files]
    return [image for image in grey if min(image.size) >= 128 and np.asarray(image).std() > 10]


def crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S] of a random square of a picture."""
    side = min(image.size) * np.sqrt(rng.uniform(0.2, 1.0))
    left, top = (rng.uniform(0, length - side) for length in image.size)
    small = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(small, dtype=np.float32)[:, :: 1 if rng.random() < 0.5 else -1]
    return np.clip((pixels - 128) * rng.uniform(0.6, 1.4) + 128 + rng.uniform(-30, 30), 0, 255).astype(np.uint8)


def main() -> None:
    """Train and save a state dict."""
    out, updates = sys.argv[1], int((sys.argv[2:] or ["400"])[0])
    torch.set_num_threads(2)
    torch.manual_seed(0)
    images, rng = photographs(), np.random.default_rng(0)
    print(f"{describe()}; {len(images)} pictures")
    model = resnet18(weights=None, num_classes=len(images)).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    right = []
    for update in range(updates):
        labels = rng.integers(len(images), size=BATCH)
        pixels = np.stack([crop(images[k], rng) for k in labels])
        scores = model(network_input(torch.from_numpy(pixels), "imagenet"))
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        right.append(float((scores.argmax(dim=1).numpy() == labels).mean()))
        if (update + 1) % 50 == 0:
            print(f"update {update + 1}: {np.mean(right[-50:]):.0%} of the crops named", flush=True)
    torch.save(model.state_dict(), out)


if __name__ == "__main__":
    main()
