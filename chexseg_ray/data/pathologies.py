"""The ten pathologies of the paper in channel order, and the names they have elsewhere."""

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

COMPETITION_PATHOLOGIES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

_ALIASES = {"Airspace Opacity": ("Airspace Opacity", "Lung Opacity")}


def names_of(pathology: str) -> tuple[str, ...]:
    """The names a file may use for a pathology, preferred first (CheXpert says Lung Opacity for Airspace Opacity)."""
    return _ALIASES.get(pathology, (pathology,))
