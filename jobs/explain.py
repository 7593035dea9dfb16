"""Print the records behind a number: python jobs/explain.py ADDRESS | results.csv:LINE. Installed: chexseg-explain."""

import sys

from chexseg_ray.report.job import explain

if __name__ == "__main__":
    sys.exit(explain())
