"""Check a store, or list and delete what is left over in it: python jobs/store.py --help. Installed: chexseg-store."""

import sys

from chexseg_ray.upkeep.job import main

if __name__ == "__main__":
    sys.exit(main())
