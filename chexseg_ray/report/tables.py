"""The main table with one row per setting, for Markdown, HTML and the terminal."""

from collections.abc import Sequence

from chexseg_ray.config.axes import setting_table
from chexseg_ray.report.results import Estimate, SettingResult
from chexseg_ray.report.text import DAGGER, ends, marked, with_interval

MEAN_COLUMN = "mIoU (interval)"


def main_table(
    settings: Sequence[SettingResult], aggregation: str, pathologies: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Make the main table.

    Args:
        settings: all settings, in the study's order.
        aggregation: one of AGGREGATIONS.
        pathologies: K names.

    Returns:
        The names of the columns, and a row for each setting: its values, `n of m` trials, the mean IoU with its
        intervals, and the IoU of each pathology: with * if few patients show it, with † (as the mean) if a
        trial's threshold is 0, and with the number of trials that define it if not all do.
    """
    headings, values = setting_table([result.setting for result in settings])
    rows = []
    for result, cells in zip(settings, values, strict=True):
        mean = result.mean[aggregation]
        ious = [_iou_text(estimate, result.trials) for estimate in result.pathologies[aggregation]]
        mark = DAGGER if mean.whole_image else ""
        intervals = [with_interval(mean.both) + mark, ends(mean.trials), ends(mean.patients)]
        trials = f"{result.trials} of {result.planned}"
        rows.append([*cells, trials, *intervals, *(ious or ["–"] * len(pathologies))])
    return [*headings, "trials", MEAN_COLUMN, "over trials", "over patients", *pathologies], rows


def _iou_text(estimate: Estimate, trials: int) -> str:
    defined = estimate.trials.n
    return f"{marked(estimate)} ({defined} of {trials})" if 0 < defined < trials else marked(estimate)
