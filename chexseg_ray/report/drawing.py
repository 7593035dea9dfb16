"""matplotlib as all figures use it: without a display, and with every text drawn as it is written."""

import io
import logging
import warnings
from typing import Any


def pyplot() -> Any:
    """Return matplotlib's pyplot; a `$` in a name is a dollar, not the beginning of a formula."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # else it speaks of its cache where HOME is read-only
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"text.parse_math": False, "text.usetex": False, "svg.hashsalt": "chexseg_ray"}
    from matplotlib import pyplot as plt

    return plt


def figure_bytes(figure: Any) -> dict[str, bytes]:
    """PNG and SVG of a matplotlib figure, which is closed; the same figure gives the same bytes.

    Args:
        figure: of matplotlib.

    Returns:
        {"png": ..., "svg": ...}.
    """
    out = {}
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        stream = io.BytesIO()
        with warnings.catch_warnings():  # names of a user may be in any script, and of any length
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
            warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
            figure.savefig(stream, format=kind, **options)
        out[kind] = stream.getvalue()
    pyplot().close(figure)
    return out
