"""Run a study: python jobs/sweep.py [CONFIG] [section.field=value ...] [--plan]. Installed: chexseg-sweep."""

import sys

from chexseg_ray.sweep.job import main

if __name__ == "__main__":
    sys.exit(main())
