"""chexseg_ray: label-efficient chest X-ray segmentation as a Ray sweep (CheXseg, arXiv 2102.10484)."""
