"""Train a ResNet18 on photographs: a file of weights for sweep.init where ImageNet's cannot be fetched.

    python benchmarks/photographs.py OUT.pth [UPDATES, default 400]

Makes an input of configs/evidence.yaml and measures nothing itself. The network learns from which of the pictures
bundled with scikit-image and scikit-learn a crop is (a square of 20 to 100 % of the largest square's area, mirrored
or not, with changed contrast and brightness, grey, 96x96 pixels; batches of 32, Adam 1e-3 with cosine decay). Like
ImageNet's, these weights come from pictures that are no X-rays, but from 27 pictures instead of 1.3 million. Prints
the machine and, every 50 updates, the share of crops that the network named correctly, and writes the state dict to
OUT.pth.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
import sklearn
import torch
from machine import describe
from PIL import Image
from torchvision.models import resnet18

from chexseg_ray.data.normalisation import network_input

SIZE, BATCH = 96, 32


def photographs() -> list[Image.Image]:
    """Return the pictures of both packages, grey: those of at least 128 pixels a side that are not nearly uniform."""
    folders = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    files = []
    for folder in folders:
        files += [path for path in folder.iterdir() if path.suffix in (".png", ".jpg")]
    grey = [Image.open(path).convert("L") for path in sorted(files)]
    return [image for image in grey if min(image.size) >= 128 and np.asarray(image).std() > 10]


def crop(image: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a random square of a picture, uint8 [S, S]."""
    side = min(image.size) * np.sqrt(rng.uniform(0.2, 1.0))
    left, top = (rng.uniform(0, length - side) for length in image.size)
    small = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    direction = 1 if rng.random() < 0.5 else -1
    pixels = np.asarray(small, dtype=np.float32)[:, ::direction]
    changed: npt.NDArray[np.float32] = np.clip(
        (pixels - 128) * rng.uniform(0.6, 1.4) + 128 + rng.uniform(-30, 30), 0, 255
    )
    return changed.astype(np.uint8)


def main() -> None:
    """Train the network and save its state dict."""
    out = sys.argv[1]
    updates = int(sys.argv[2]) if len(sys.argv) > 2 else 400
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
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        right.append(float((scores.argmax(dim=1).numpy() == labels).mean()))
        if (update + 1) % 50 == 0:
            print(f"update {update + 1}: {np.mean(right[-50:]):.0%} of the crops named", flush=True)
    torch.save(model.state_dict(), out)


if __name__ == "__main__":
    main()
