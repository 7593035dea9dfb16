"""The GPU benchmark runs at tiny sizes: it must still run on the day when there is a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from studies import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), "--tiny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=REPOSITORY)


@pytest.mark.ray
def test_the_gpu_benchmark_runs_at_tiny_sizes_and_finds_every_step_right(tmp_path: Path) -> None:
    done = run("gpu.py", "--only", "machine", "right", "speed", "irnet", "maps", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((tmp_path / "gpu.json").read_text())
    steps = ("segmentation", "classifier densenet121", "classifier resnet18", "irnet", "irnet displacement", "moco")
    for step in steps:
        assert numbers[f"right: {step}"]["exact_gradient"] < 5e-3, step
        assert numbers[f"speed: {step}"]["updates_per_s"] > 0
    for output in ("logits", "cams", "boundary", "scores", "walk chexseg", "walk irn", "walk by instance"):
        assert numbers[f"right: {output}"]["exact"] < 1e-3, output
    assert numbers["histogram on the device"]["equal"] is True
