"""Write the report of a study: python jobs/report.py [CONFIG] [section.field=value ...]. Installed: chexseg-report."""

import sys

from chexseg_ray.report.job import main

if __name__ == "__main__":
    sys.exit(main())
