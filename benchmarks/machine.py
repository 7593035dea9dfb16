"""What a benchmark prints first: the machine that gave its numbers."""

import os
import platform
from pathlib import Path

import torch


def describe() -> str:
    """One line: processor, cores, threads, torch, GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {gpu}"
