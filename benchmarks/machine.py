"""The line that a benchmark prints first: which machine gave its numbers. Not a script; the benchmarks import it."""

import os
import platform
from pathlib import Path

import torch


def describe() -> str:
    """Return one line: processor, cores, torch's threads and version, GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {gpu}"
