"""The first sentences: one a question, details below, p-values as people write them."""

import math
from dataclasses import replace

import pytest

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.evaluation.contrasts import Difference
from chexseg_ray.evaluation.intervals import Combined, Interval, undefined
from chexseg_ray.report.contrasts import ContrastResult
from chexseg_ray.report.findings import findings
from chexseg_ray.report.readers import Comparison
from chexseg_ray.report.text import p_text

NOTHING = Comparison([], undefined(math.nan, 0, "no radiologists"))


def contrast(init: str, mean: float, holm_p: float, method: str = "gradcam") -> ContrastResult:
    """p = 0.9 against p = 1, with an interval of ± 0.05."""
    first = SweepPoint(method, 0.9, init, 100, None, "deeplabv3plus", "resnet18")
    interval = Interval(mean, mean - 0.05, mean + 0.05, 3, "")
    patients = replace(interval, n=40)
    both = Combined(interval, 0.0, 0.0, (2.0, 39.0), 0.0)
    difference = Difference(interval, patients, both, holm_p / 2)
    return ContrastResult(first, replace(first, p=1.0).canonical(), 3, difference, holm_p, 5, 100, "")


def texts(*contrasts: ContrastResult) -> list[str]:
    return [finding.text for finding in findings(contrasts, NOTHING, {}, 0.95)]


def test_a_question_asked_of_many_settings_is_one_sentence_with_the_settings_below() -> None:
    asked = [contrast("random", -0.105, 1.0), contrast("moco", -0.017, 1.0), contrast("chexpert", 0.03, 0.5)]
    (finding,) = findings(asked, NOTHING, {}, 0.95)
    largest = "largest: -0.105 (-0.155 to -0.055), gradcam, random, 100 weak"
    assert finding.text == f"p = 0.9 against p = 1: no difference shown in any of 3 settings ({largest})."
    assert finding.details == (
        "gradcam, random, 100 weak: no difference in mIoU shown: -0.105 (-0.155 to -0.055), Holm's p = 1",
        "gradcam, moco, 100 weak: no difference in mIoU shown: -0.017 (-0.067 to 0.033), Holm's p = 1",
        "gradcam, chexpert, 100 weak: no difference in mIoU shown: +0.030 (-0.020 to 0.080), Holm's p = 0.500",
    )


def test_what_is_shown_in_some_settings_is_counted_both_ways() -> None:
    asked = [
        contrast("random", 0.2, 0.0002),
        contrast("moco", 0.1, 0.01),
        contrast("chexpert", -0.1, 0.02),
        contrast("imagenet", 0.0, 0.8),
    ]
    assert texts(*asked) == [
        "p = 0.9 against p = 1: higher mIoU in 2 of 4 settings (+0.100 to +0.200); "
        "lower mIoU in 1 of 4 settings (-0.100); no difference shown in 1."
    ]


def test_a_question_asked_once_names_its_setting() -> None:
    assert texts(contrast("random", 0.2, 0.0002)) == [
        "p = 0.9 against p = 1 (gradcam, random, 100 weak): mIoU is higher: +0.200 (0.150 to 0.250), Holm's p < .001."
    ]


def test_two_questions_are_two_sentences() -> None:
    other = contrast("random", -0.2, 0.001)
    other = replace(other, second=replace(other.first, method="irnet"))
    assert [text.partition(":")[0] for text in texts(contrast("random", 0.2, 0.0002), other)] == [
        "p = 0.9 against p = 1 (gradcam, random, 100 weak)",
        "gradcam against irnet (p = 0.9, random, 100 weak)",
    ]


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (1.0, "1"),
        (0.9996, "> .999"),
        (0.0004, "< .001"),
        (0.0303, "0.030"),
        (0.0496, "0.0496"),
        (0.0504, "0.0504"),
        (math.nan, "–"),
    ],
)
def test_p_values_are_written_as_people_write_them(p: float, text: str) -> None:
    assert p_text(p) == text
