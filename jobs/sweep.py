"""Run a study: python jobs/sweep.py [CONFIG.yaml] [section.field=value ...] [--plan]

CONFIG.yaml defaults to configs/demo.yaml. --plan prints what is built and what is not, and runs nothing.
The same command again goes on where it stopped; with nothing to build it does not start Ray.
Exit codes: 0 done, 2 bad config or data, 3 some trials failed, 75 try again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chexseg_ray.command import Asked, run_job


def run(asked: Asked) -> int:
    """Build what is missing and report."""
    from chexseg_ray.sweep import run_study

    return run_study(asked.config, plan_only="--plan" in asked.flags, asked=asked.text)


if __name__ == "__main__":
    sys.exit(run_job(__doc__ or "", run, ["--plan"]))
