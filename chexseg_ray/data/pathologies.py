"""The ten pathologies of the paper, in channel order, and the names that other files give them."""

PATHOLOGIES = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Airspace Opacity",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Support Devices",
)

# the five pathologies that CheXpert's competition evaluates
COMPETITION_PATHOLOGIES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

_ALIASES = {"Airspace Opacity": ("Airspace Opacity", "Lung Opacity")}


def names_of(pathology: str) -> tuple[str, ...]:
    """Return the names that a file may use for `pathology`, preferred first.

    CheXpert calls Airspace Opacity Lung Opacity.
    """
    return _ALIASES.get(pathology, (pathology,))
