"""Export a trained network: python jobs/export.py MODEL [--out FOLDER]. Installed: chexseg-export."""

import sys

from chexseg_ray.predict.job import export

if __name__ == "__main__":
    sys.exit(export())
