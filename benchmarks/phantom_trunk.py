"""Train a ResNet50 on phantoms' image labels: a file of weights for irnet.encoder where ImageNet's cannot be fetched.

    python benchmarks/phantom_trunk.py OUT.pth [UPDATES, default 300] [SEED, default 1000]

Makes an input of irnet_quality.py and measures nothing itself. The network learns which pathologies an image shows,
on a phantom data set that no study uses (500 patients drawn from SEED), with 96x96 pixels, Adam 1e-3 with cosine
decay and batches of 16. Prints the machine and the mean loss of every 25 updates, and writes the state dict to
OUT.pth.
"""

import sys

import numpy as np
import torch
from machine import describe
from torchvision.models import resnet50

from chexseg_ray.data.images import letterbox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import plan_phantom, render

SIZE, BATCH, PATIENTS = 96, 16, 500


def main() -> None:
    """Train the network and save its state dict."""
    out = sys.argv[1]
    updates = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    print(describe())
    plan = [image for image in plan_phantom(PATIENTS, 1, 1, seed) if image.split == "train"]
    pixels = np.stack([letterbox(render(image, 160)[0], SIZE) for image in plan])
    labels = np.array([[name in image.findings for name in PATHOLOGIES] for image in plan], dtype=np.float32)
    model = resnet50(weights=None, num_classes=len(PATHOLOGIES)).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    rng = np.random.default_rng(seed)
    losses = []
    for update in range(updates):
        rows = rng.choice(len(plan), BATCH, replace=False)
        direction = -1 if rng.random() < 0.5 else 1
        inputs = network_input(torch.from_numpy(pixels[rows][:, :, ::direction].copy()), "imagenet")
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), torch.from_numpy(labels[rows]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (update + 1) % 25 == 0:
            print(f"update {update + 1}: loss {np.mean(losses[-25:]):.3f}", flush=True)
    torch.save(model.state_dict(), out)


if __name__ == "__main__":
    main()
