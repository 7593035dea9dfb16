"""Predict X-rays: python jobs/predict.py MODEL IMAGE [IMAGE ...] [--out FOLDER]. Installed: chexseg-predict."""

import sys

from chexseg_ray.predict.job import predict

if __name__ == "__main__":
    sys.exit(predict())
