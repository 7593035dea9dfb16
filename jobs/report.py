"""Write the report of a study from what its store holds, whole or half: python jobs/report.py [CONFIG.yaml] [section.field=value ...]

Builds nothing and does not start Ray. Exit codes: 0 done, 2 bad config or data.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chexseg_ray.command import Asked, run_job


def run(asked: Asked) -> int:
    """Report on the points that are there."""
    from chexseg_ray.artifacts import Store
    from chexseg_ray.build import load_study
    from chexseg_ray.report.page import write_report

    write_report(asked.config, load_study(asked.config)[0], Store.open(asked.config.store.root))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(__doc__ or "", run))
