"""The paper's own numbers (Gadgil et al. 2021, Tables 1 and 2, Figure 3a), to stand beside a run of the paper's study."""

from chexseg_ray.config import StudyConfig
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.pipeline import PAPER_NETWORK, SweepPoint

_PS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 1.0)
_P_0_WEAK_N = 20000  # Table 1's column p = 0 is Table 2's runs with 20000 images, though section 4.1 speaks of 100

# Table 1 and Figure 2: CAM, then IRNet, over _PS; p = 1 is one training for both
_TABLE_1 = {
    "mean": ((0.142, 0.238, 0.246, 0.248, 0.255, 0.261, 0.270, 0.246), (0.156, 0.216, 0.228, 0.236, 0.252, 0.254, 0.267, 0.246)),
    "Airspace Opacity": ((0.161, 0.364, 0.381, 0.382, 0.376, 0.376, 0.398, 0.388), (0.225, 0.334, 0.355, 0.362, 0.374, 0.377, 0.403, 0.388)),
    "Atelectasis": ((0.099, 0.299, 0.295, 0.297, 0.306, 0.299, 0.310, 0.307), (0.182, 0.269, 0.278, 0.287, 0.316, 0.308, 0.323, 0.307)),
    "Cardiomegaly": ((0.326, 0.420, 0.438, 0.434, 0.440, 0.442, 0.450, 0.445), (0.280, 0.393, 0.401, 0.425, 0.428, 0.440, 0.461, 0.445)),
    "Consolidation": ((0.056, 0.097, 0.099, 0.105, 0.109, 0.108, 0.114, 0.103), (0.076, 0.099, 0.104, 0.107, 0.108, 0.110, 0.110, 0.103)),
    "Edema": ((0.170, 0.231, 0.253, 0.241, 0.250, 0.261, 0.270, 0.225), (0.149, 0.198, 0.219, 0.239, 0.237, 0.242, 0.257, 0.225)),
    "Enlarged Cardiomediastinum": (
        (0.236, 0.516, 0.494, 0.494, 0.514, 0.526, 0.543, 0.549),
        (0.327, 0.466, 0.480, 0.489, 0.528, 0.531, 0.535, 0.549),
    ),
    "Lung Lesion": ((0.002, 0.004, 0.003, 0.003, 0.005, 0.008, 0.008, 0.002), (0.003, 0.002, 0.002, 0.003, 0.014, 0.014, 0.007, 0.002)),
    "Pleural Effusion": ((0.150, 0.254, 0.256, 0.263, 0.264, 0.266, 0.272, 0.214), (0.171, 0.182, 0.192, 0.191, 0.243, 0.243, 0.273, 0.214)),
    "Pneumothorax": ((0.057, 0.021, 0.025, 0.035, 0.044, 0.074, 0.077, 0.017), (0.024, 0.018, 0.029, 0.033, 0.040, 0.050, 0.053, 0.017)),
    "Support Devices": ((0.159, 0.203, 0.223, 0.231, 0.241, 0.249, 0.257, 0.246), (0.123, 0.202, 0.217, 0.226, 0.229, 0.221, 0.248, 0.246)),
}
# Table 2 and Figure 3b, p = 0: {method: {init: mIoU with 100, 2000, 20000 weak images}}
_TABLE_2 = {
    "gradcam": {
        "random": (0.074, 0.126, 0.136),
        "imagenet": (0.082, 0.132, 0.139),
        "moco": (0.084, 0.133, 0.139),
        "chexpert": (0.129, 0.141, 0.142),
    },
    "irnet": {
        "random": (0.076, 0.105, 0.111),
        "imagenet": (0.081, 0.117, 0.124),
        "moco": (0.082, 0.120, 0.128),
        "chexpert": (0.125, 0.146, 0.156),
    },
}
_SIZES = (100, 2000, 20000)
GAP_CLOSED = 0.572  # section 4.3: of the mIoU gap between the best weakly supervised model and the radiologists


def is_paper(config: StudyConfig) -> bool:
    """Whether a study's data are of the paper's kind, so that its numbers may stand beside the paper's."""
    data = config.data
    return data.root is not None and data.image_size == 320 and set(data.pathologies) == set(PATHOLOGIES)


def paper_value(config: StudyConfig, setting: SweepPoint, pathology: str) -> float | None:
    """The paper's IoU of a setting, of a pathology or the `mean`; None where it prints none or the config is another one."""
    if not is_paper(config) or (setting.architecture, setting.encoder) != PAPER_NETWORK or setting.num_expert is not None:
        return None
    if setting.p == 0 and pathology == "mean" and setting.method and setting.weak_n in _SIZES:
        own = _TABLE_2[setting.method].get(setting.init)
        return own[_SIZES.index(setting.weak_n)] if own else None
    expected = _P_0_WEAK_N if setting.p == 0 else 100 if setting.p < 1 else 0
    if setting.init != "chexpert" or setting.p not in _PS or setting.weak_n != expected:
        return None
    return _TABLE_1[pathology][1 if setting.method == "irnet" else 0][_PS.index(setting.p)]
