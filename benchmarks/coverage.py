"""How often the report's intervals hold the truth, and how often its tests err: simulated studies with known truth.

    python benchmarks/coverage.py [SIMULATIONS, default 2000]

Measures the coverage of each interval at level 95 %, by number of patients, prevalence and number of trials. A test
set is simulated patient by patient: some patients have two images, some show the pathology (lognormal areas), and a
network finds a share of it that varies with the patient, the trial and both, and marks other pixels by mistake. The
truth is the IoU in a population of 200,000 patients. The intervals are: Student's t over normal trials; the bootstrap
over patients of one trial; the one over trials and patients, beside the percentiles of a hierarchical bootstrap. Two
settings that do not differ show how often the paired contrast finds a difference. The last table is about the mean
over ten pathologies, of which an ill patient shows several. Prints per cent of the simulations, in one table for each
kind of study; `blank` is the share of simulations in which an interval could not be given.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from chexseg_ray.evaluation.bootstrap import (
    PatientSums,
    effective_patients,
    mean_over_pathologies,
    patient_weights,
    pooled_sums,
)
from chexseg_ray.evaluation.contrasts import paired_difference
from chexseg_ray.evaluation.intervals import combined_interval, hierarchical_interval, percentile_interval, t_interval

LEVEL = 0.95
REPLICATES = 1000
QUALITY = -0.2  # logit of the share that is found
TRIAL_SD, PATIENT_SD, BOTH_SD = 0.15, 0.8, 0.3  # of that logit
TOGETHER = 0.6  # correlation, between pathologies, of the severity that decides which of the ten a patient shows
PREVALENCES = (0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.08, 0.05, 0.03, 0.02)  # of the ten pathologies


@dataclass(frozen=True)
class Patients:
    """N images of simulated patients, with one pathology.

    Args:
        rows: [N], the patient of each image.
        difficulty: [N], what the patient adds to the logit of the share that is found.
        truth: [N], true area in pixels.
        wrong: [N], area that a network marks beside the pathology, in pixels.
    """

    rows: npt.NDArray[np.int64]
    difficulty: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.float64]

    @classmethod
    def draw(
        cls, number: int, prevalence: float, rng: np.random.Generator, illness: npt.NDArray[np.float64] | None = None
    ) -> "Patients":
        """Draw patients, 30 % of them with two images.

        Args:
            number: of patients.
            prevalence: share of patients who show the pathology.
            rng: source of all random numbers.
            illness: [number], standard normal, shared by the pathologies of a patient: patients with a low value show
                each pathology more often. None draws the pathology independently of others.
        """
        images = 1 + (rng.random(number) < 0.3)
        rows = np.repeat(np.arange(number), images)
        severity = rng.normal(size=number)
        if illness is not None:
            severity = TOGETHER**0.5 * illness + (1 - TOGETHER) ** 0.5 * severity
        positive = (severity < ndtri(prevalence))[rows]
        difficulty = rng.normal(scale=PATIENT_SD, size=number)[rows]
        truth = np.where(positive, np.rint(rng.lognormal(6.0, 0.7, len(rows))), 0)
        wrong = np.where(positive | (rng.random(len(rows)) < 0.15), rng.lognormal(4.5, 0.8, len(rows)), 0)
        return cls(rows, difficulty, truth, wrong)

    def counts(self, quality: float, rng: np.random.Generator, both_sd: float = BOTH_SD) -> npt.NDArray[np.int64]:
        """Draw intersection, predicted and true area of each image, int64 [N, 1, 3], in pixels.

        Args:
            quality: the network's logit of the share that it finds.
            rng: source of all random numbers.
            both_sd: standard deviation of what this network adds to that logit in each image.
        """
        share = expit(quality + self.difficulty + rng.normal(scale=both_sd, size=len(self.rows)))
        found = np.rint(share * self.truth)
        return np.stack([found, np.rint(found + self.wrong), self.truth], axis=-1).astype(np.int64)[:, None]


def true_iou(
    prevalence: float, rng: np.random.Generator, trial_sd: float = TRIAL_SD, both_sd: float = BOTH_SD
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return a grid of 33 qualities and the pooled IoU of networks of these qualities in the population."""
    grid = QUALITY + trial_sd * np.linspace(-4, 4, 33)
    population = Patients.draw(200_000, prevalence, rng)
    totals = [population.counts(quality, rng, both_sd)[:, 0].sum(axis=0) for quality in grid]
    return grid, np.array([i / (p + t - i) for i, p, t in totals])


def _expected(grid: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    """Return the mean of true_iou's values over normal trials; its grid has four standard deviations on each side."""
    return float(np.average(values, weights=np.exp(-0.5 * np.linspace(-4, 4, len(grid)) ** 2)))


@dataclass(frozen=True)
class Coverage:
    """Shares of the simulations that are not blank, each in [0, 1], and two facts about all simulations.

    Args:
        positives: mean number of patients who show the pathology; simulate_mean gives the mean number of pathologies
            with fewer than 20 such patients.
        patients: share whose interval over patients holds the first trial's truth.
        both: share whose interval over trials and patients holds the mean over all possible trials.
        hierarchical: the same for the percentiles of the hierarchical bootstrap.
        false_findings: share whose paired contrast has a p-value below 5 %, although the settings do not differ.
        blank: share of all simulations in which one of the intervals could not be given.
    """

    positives: float
    patients: float
    both: float
    hierarchical: float
    false_findings: float
    blank: float


Case = tuple[int, float, int, dict[str, Any]]  # patients, prevalence, trials, and other arguments of simulate
Row = tuple[str, Callable[[], Coverage]]  # what a table's row begins with, and what computes the rest


def simulate(
    patients: int,
    prevalence: float,
    trials: int,
    simulations: int,
    seed: int,
    replicates: int = REPLICATES,
    trial_sd: float = TRIAL_SD,
    both_sd: float = BOTH_SD,
) -> Coverage:
    """Simulate studies of one pathology and return how often their intervals hold the truth.

    Args:
        patients: number of patients of the test set.
        prevalence: share of patients who show the pathology.
        trials: number of trials of each of two settings.
        simulations: number of studies.
        seed: of all random numbers.
        replicates: number of bootstrap replicates.
        trial_sd: standard deviation of the trials' qualities.
        both_sd: standard deviation of what a trial adds in each image.
    """
    rng = np.random.default_rng([seed, patients, round(1000 * prevalence), trials])
    grid, values = true_iou(prevalence, rng, trial_sd, both_sd)
    expected = _expected(grid, values)
    hits = {"patients": 0, "both": 0, "hierarchical": 0, "false": 0}
    positives = blank = 0
    for simulation in range(simulations):
        cohort = Patients.draw(patients, prevalence, rng)
        positive = len(np.unique(cohort.rows[cohort.truth > 0]))
        positives += positive
        qualities = rng.normal(QUALITY, trial_sd, size=2 * trials)  # two settings that do not differ
        sums = [pooled_sums(cohort.counts(quality, rng, both_sd), cohort.rows, patients) for quality in qualities]
        together = PatientSums(
            np.concatenate([trial.numerator for trial in sums], axis=1),
            np.concatenate([trial.denominator for trial in sums], axis=1),
            np.concatenate([trial.truth for trial in sums], axis=1),
        )
        estimates = together.estimate()
        drawn = together.replicates(patient_weights(patients, replicates, simulation))
        first = estimates[:trials]
        one = percentile_interval(float(first[0]), drawn[:, 0], positive, LEVEL)
        both = combined_interval(first.tolist(), drawn[:, :trials], positive, LEVEL).interval
        crossed = hierarchical_interval(float(first.mean()), drawn[:, :trials], LEVEL, rng)
        test = paired_difference(
            first.tolist(), estimates[trials:].tolist(), drawn[:, :trials], drawn[:, trials:], positive, LEVEL
        )
        if any(interval.reason for interval in (one, both, crossed, test.both.interval)):
            blank += 1
            continue
        truth = float(np.interp(qualities[0], grid, values))
        hits["patients"] += one.low <= truth <= one.high
        hits["both"] += both.low <= expected <= both.high
        hits["hierarchical"] += crossed.low <= expected <= crossed.high
        hits["false"] += test.p_value < 1 - LEVEL
    done = max(1, simulations - blank)
    share = {name: hit / done for name, hit in hits.items()}
    return Coverage(
        positives / simulations,
        share["patients"],
        share["both"],
        share["hierarchical"],
        share["false"],
        blank / simulations,
    )


def simulate_mean(patients: int, trials: int, simulations: int, seed: int, replicates: int = REPLICATES) -> Coverage:
    """Do what simulate does for the mean over ten pathologies, whose prevalences differ as much as CheXlocalize's.

    Args:
        patients: number of patients of the test set.
        trials: number of trials of each of two settings.
        simulations: number of studies.
        seed: of all random numbers.
        replicates: number of bootstrap replicates.
    """
    rng = np.random.default_rng([seed, patients, trials])
    truths = [true_iou(prevalence, rng) for prevalence in PREVALENCES]
    hits = {"patients": 0, "both": 0, "hierarchical": 0, "false": 0}
    blank = few = 0
    for simulation in range(simulations):
        illness = rng.normal(size=patients)
        cohorts = [Patients.draw(patients, prevalence, rng, illness) for prevalence in PREVALENCES]  # one a pathology
        ill = [np.unique(cohort.rows[cohort.truth > 0]) for cohort in cohorts]
        most = len(np.unique(np.concatenate(ill)))
        positive = np.array([len(each) for each in ill])
        defined, weights = positive > 0, patient_weights(patients, replicates, simulation)
        few += int((positive < 20).sum())
        qualities = rng.normal(QUALITY, TRIAL_SD, size=(2 * trials, len(cohorts)))
        sums = []  # of each trial, for each pathology
        for trial in qualities:
            pairs = zip(cohorts, trial, strict=True)
            sums.append([pooled_sums(cohort.counts(quality, rng), cohort.rows, patients) for cohort, quality in pairs])
        estimates = np.array([[pathology.estimate()[0] for pathology in trial] for trial in sums])[:, defined]
        drawn_all = [np.concatenate([pathology.replicates(weights) for pathology in trial], axis=1) for trial in sums]
        drawn = np.stack(drawn_all)[:, :, defined]
        first, second = drawn[:trials].mean(axis=0), drawn[trials:].mean(axis=0)
        carried = effective_patients(first, positive[defined], most)
        between = effective_patients(first - second, positive[defined], most)
        means = estimates.mean(axis=1)
        by_trial = np.stack([mean_over_pathologies(trial, np.ones(trial.shape[1], dtype=bool)) for trial in drawn])
        shown = [(k, truths[k]) for k in np.flatnonzero(defined)]
        of_first = [float(np.interp(qualities[0, k], *truth)) for k, truth in shown]
        over_trials = [_expected(*truth) for _, truth in shown]
        one = percentile_interval(float(means[0]), by_trial[0], carried, LEVEL)
        both = combined_interval(means[:trials].tolist(), by_trial[:trials].T, carried, LEVEL).interval
        crossed = hierarchical_interval(float(means[:trials].mean()), by_trial[:trials].T, LEVEL, rng)
        test = paired_difference(
            means[:trials].tolist(), means[trials:].tolist(), by_trial[:trials].T, by_trial[trials:].T, between, LEVEL
        )
        if any(interval.reason for interval in (one, both, crossed, test.both.interval)):
            blank += 1
            continue
        expected = np.mean(over_trials)
        hits["patients"] += bool(one.low <= np.mean(of_first) <= one.high)
        hits["both"] += bool(both.low <= expected <= both.high)
        hits["hierarchical"] += bool(crossed.low <= expected <= crossed.high)
        hits["false"] += test.p_value < 1 - LEVEL
    done = max(1, simulations - blank)
    share = {name: hit / done for name, hit in hits.items()}
    return Coverage(
        few / simulations, share["patients"], share["both"], share["hierarchical"], share["false"], blank / simulations
    )


def t_coverage(trials: int, simulations: int, seed: int) -> float:
    """Return the share of Student's t intervals over normal trials that hold their mean."""
    rng = np.random.default_rng([seed, trials])
    intervals = [t_interval(rng.normal(0.3, 0.02, size=trials).tolist(), LEVEL) for _ in range(simulations)]
    return float(np.mean([i.low <= 0.3 <= i.high for i in intervals]))


def main() -> None:
    """Simulate all kinds of studies and print the tables."""
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    error = 100 * 1.96 * (LEVEL * (1 - LEVEL) / simulations) ** 0.5
    title = f"coverage in per cent at level {LEVEL:.0%}, {simulations} simulations (+- {error:.1f})"
    print(f"{title}, {REPLICATES} bootstrap replicates")
    for trials in (2, 3, 5, 10):
        print(f"t over {trials:2} normal trials: {100 * t_coverage(trials, 5 * simulations, 0):.1f}")
    names = "| patients  trials and patients  (percentile hierarchical)  false findings  blank"
    varied: list[Case] = [(p, 0.3, t, {"trial_sd": 4 * TRIAL_SD}) for p, t in product((200, 500), (3, 5))]
    more = {"simulations": 5 * simulations, "seed": 3}
    repeated: list[Case] = [(200, 0.6, 3, {**more, "both_sd": sd}) for sd in (BOTH_SD, 1.0)]
    erring: list[Case] = [(200, 0.6, t, {"both_sd": 1.0, "trial_sd": sd}) for sd, t in product((0.02, 0.15), (3, 5))]
    tables: dict[str, list[Case]] = {
        "one pathology": [(p, q, t, {}) for p, q, t in product((50, 100, 200, 500), (0.1, 0.3, 0.6), (3, 5))],
        "trials that vary four times as much": varied,
        "five times as many studies": repeated,
        "trials that err on patients of their own": erring,
    }
    shared: dict[str, Any] = {"simulations": simulations, "seed": 0}
    for title, cases in tables.items():
        print(f"{title}\npatients prevalence positive trials {names}")
        rows: list[Row] = []
        for p, q, t, changes in cases:
            rows.append((f"{p:8} {q:10.1f} {{:8.0f}} {t:6}", partial(simulate, p, q, t, **{**shared, **changes})))
        _print_rows(rows)
    print(f"mean of ten pathologies\npatients of which with fewer than 20 positives, trials {names}")
    sizes = product((100, 200, 500), (3, 5))
    _print_rows([(f"{p:8} {{:19.1f}} {t:6}", partial(simulate_mean, p, t, **shared)) for p, t in sizes])


def _print_rows(rows: list[Row]) -> None:
    """Simulate rows side by side, and print each when it is done, in order; its text has a place for `positives`."""
    with ProcessPoolExecutor() as pool:
        for (start, _), done in zip(rows, [pool.submit(call) for _, call in rows], strict=True):
            _print_row(start.format(done.result().positives), done.result())


def _print_row(start: str, row: Coverage) -> None:
    """Print one row, its shares in per cent."""
    intervals = f"{100 * row.patients:8.1f}  {100 * row.both:19.1f}  {100 * row.hierarchical:25.1f}"
    print(f"{start} | {intervals}  {100 * row.false_findings:14.1f}  {100 * row.blank:5.1f}", flush=True)


if __name__ == "__main__":
    main()
