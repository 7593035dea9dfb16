"""The paper's own numbers (Gadgil et al. 2021, Tables 1 and 2, Figure 3a), shown beside a run of the paper's study."""

from chexseg_ray.config.axes import SweepPoint, extra_words
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.data.pathologies import PATHOLOGIES

_PS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 1.0)
_P_0_WEAK_N = 20000  # Table 1's column p = 0 shows Table 2's runs with 20000 images; section 4.1 speaks of 100

_METHODS = ("gradcam", "irnet")
# Table 1 and Figure 2: for each of _METHODS a row over _PS; both share their training with p = 1
_TABLE_1 = {
    "mean": (
        (0.142, 0.238, 0.246, 0.248, 0.255, 0.261, 0.270, 0.246),
        (0.156, 0.216, 0.228, 0.236, 0.252, 0.254, 0.267, 0.246),
    ),
    "Airspace Opacity": (
        (0.161, 0.364, 0.381, 0.382, 0.376, 0.376, 0.398, 0.388),
        (0.225, 0.334, 0.355, 0.362, 0.374, 0.377, 0.403, 0.388),
    ),
    "Atelectasis": (
        (0.099, 0.299, 0.295, 0.297, 0.306, 0.299, 0.310, 0.307),
        (0.182, 0.269, 0.278, 0.287, 0.316, 0.308, 0.323, 0.307),
    ),
    "Cardiomegaly": (
        (0.326, 0.420, 0.438, 0.434, 0.440, 0.442, 0.450, 0.445),
        (0.280, 0.393, 0.401, 0.425, 0.428, 0.440, 0.461, 0.445),
    ),
    "Consolidation": (
        (0.056, 0.097, 0.099, 0.105, 0.109, 0.108, 0.114, 0.103),
        (0.076, 0.099, 0.104, 0.107, 0.108, 0.110, 0.110, 0.103),
    ),
    "Edema": (
        (0.170, 0.231, 0.253, 0.241, 0.250, 0.261, 0.270, 0.225),
        (0.149, 0.198, 0.219, 0.239, 0.237, 0.242, 0.257, 0.225),
    ),
    "Enlarged Cardiomediastinum": (
        (0.236, 0.516, 0.494, 0.494, 0.514, 0.526, 0.543, 0.549),
        (0.327, 0.466, 0.480, 0.489, 0.528, 0.531, 0.535, 0.549),
    ),
    "Lung Lesion": (
        (0.002, 0.004, 0.003, 0.003, 0.005, 0.008, 0.008, 0.002),
        (0.003, 0.002, 0.002, 0.003, 0.014, 0.014, 0.007, 0.002),
    ),
    "Pleural Effusion": (
        (0.150, 0.254, 0.256, 0.263, 0.264, 0.266, 0.272, 0.214),
        (0.171, 0.182, 0.192, 0.191, 0.243, 0.243, 0.273, 0.214),
    ),
    "Pneumothorax": (
        (0.057, 0.021, 0.025, 0.035, 0.044, 0.074, 0.077, 0.017),
        (0.024, 0.018, 0.029, 0.033, 0.040, 0.050, 0.053, 0.017),
    ),
    "Support Devices": (
        (0.159, 0.203, 0.223, 0.231, 0.241, 0.249, 0.257, 0.246),
        (0.123, 0.202, 0.217, 0.226, 0.229, 0.221, 0.248, 0.246),
    ),
}
# Table 2 and Figure 3b, p = 0: {method: {init: mIoU and its ± with 100, 2000, 20000 weak images}}
_TABLE_2 = {
    "gradcam": {
        "random": ("0.074 ± 0.00783", "0.126 ± 0.00275", "0.136 ± 0.00990"),
        "imagenet": ("0.082 ± 0.00396", "0.132 ± 0.00687", "0.139 ± 0.00095"),
        "moco": ("0.084 ± 0.00238", "0.133 ± 0.00002", "0.139 ± 0.00076"),
        "chexpert": ("0.129 ± 0.00036", "0.141 ± 0.00003", "0.142 ± 0.00095"),
    },
    "irnet": {
        "random": ("0.076 ± 0.00133", "0.105 ± 0.00292", "0.111 ± 0.00103"),
        "imagenet": ("0.081 ± 0.00245", "0.117 ± 0.00576", "0.124 ± 0.00001"),
        "moco": ("0.082 ± 0.00007", "0.120 ± 0.00010", "0.128 ± 0.00001"),
        "chexpert": ("0.125 ± 0.00031", "0.146 ± 0.00002", "0.156 ± 0.00000"),
    },
}
# Section 4.1: the ± of three means of Table 1
_HALVES = {
    ("gradcam", 0.9): "0.00872",
    ("irnet", 0.9): "0.00993",
    (None, 1.0): "0.01837",
}
_SIZES = (100, 2000, 20000)  # of the weak sets in Table 2
# Section 4.3: per cent of the mIoU gap between the best weakly supervised model and the radiologists
_GAP_CLOSED = 57.2
# Section 4.3: how far CheXseg is above the radiologists
_ABOVE = {
    "Atelectasis": "+156%",
    "Airspace Opacity": "+70%",
    "Pleural Effusion": "+30%",
}
CAUTION = (
    "The paper's p = 0 points of Table 1 and Figure 2 are its runs with 20000 weak images. Its intervals are not "
    "comparable with these: the paper does not say how it made them, and some cannot come from independent trials. "
    "Two of its means are not the means of its pathologies: at p = 1 these give 0.2496, the paper prints 0.246; for "
    "CAM at p = 0.2 they give 0.2409, the paper prints 0.238."
)


def is_paper(config: StudyConfig) -> bool:
    """Whether a study's data section is the paper's; only then does its report show the paper's numbers.

    It is, where a data root in CheXpert's layout has a test split, with 320 px, both views and the ten pathologies.

    Args:
        config: of the study.
    """
    data = config.data
    has_sources = data.root is not None and data.test_csv is not None and not data.columns
    return (
        has_sources
        and data.image_size == 320
        and set(data.views) == {"frontal", "lateral"}
        and set(data.pathologies) == set(PATHOLOGIES)
    )


def paper_gap_text(config: StudyConfig) -> str:
    """The paper's own share of the gap as a sentence; empty where the study is another one.

    Args:
        config: of the study.
    """
    return f" The paper: {_GAP_CLOSED} %." if is_paper(config) else ""


def above_radiologists(config: StudyConfig, pathology: str) -> str:
    """How far the paper's model is above its radiologists.

    Args:
        config: of the study.
        pathology: a name.

    Returns:
        Such as `+70%`; empty where the paper prints none or the study is another one.
    """
    return _ABOVE.get(pathology, "") if is_paper(config) else ""


def table_2_value(config: StudyConfig, setting: SweepPoint) -> str:
    """The paper's mIoU of a setting with its ± (Table 2).

    Args:
        config: of the study.
        setting: a point without its trial.

    Returns:
        Such as `0.156 ± 0.00000`; empty where p > 0, the paper prints none, or the study is another one.
    """
    if not _comparable(config, setting) or setting.p != 0 or setting.method is None or setting.weak_n not in _SIZES:
        return ""
    printed = _TABLE_2.get(setting.method, {}).get(setting.init)
    return printed[_SIZES.index(setting.weak_n)] if printed else ""


def _comparable(config: StudyConfig, setting: SweepPoint) -> bool:
    """Whether a setting has the paper's data, network and number of expert masks, and no value of a further axis."""
    is_papers_setting = setting.has_paper_network and setting.num_expert is None and not extra_words(setting)
    return is_paper(config) and is_papers_setting


def table_1_value(config: StudyConfig, setting: SweepPoint, pathology: str) -> str:
    """The paper's IoU of a setting (Table 1); where that does not print its mean, Table 2's.

    Args:
        config: of the study.
        setting: a point without its trial.
        pathology: a name, or `mean`.

    Returns:
        Such as `0.270 ± 0.00872` or `0.270`; empty where the paper prints none or the study is another one.
    """
    weak_n = 100
    if setting.p == 0:
        weak_n = _P_0_WEAK_N
    elif setting.p == 1:
        weak_n = 0
    is_in_table = setting.init == "chexpert" and setting.p in _PS and setting.weak_n == weak_n
    if not is_in_table or not _comparable(config, setting):
        return table_2_value(config, setting).partition(" ")[0] if pathology == "mean" else ""
    rows = dict(zip(_METHODS, _TABLE_1[pathology], strict=True))
    row = rows[_METHODS[0]] if setting.method is None else rows.get(setting.method)
    if row is None:
        return ""  # the paper does not have the method
    half = _HALVES.get((setting.method, setting.p)) if pathology == "mean" else None
    return f"{row[_PS.index(setting.p)]:.3f}" + (f" ± {half}" if half else "")
