"""Coverage of every interval where the truth is known, by number of patients, prevalence and trials.

    python benchmarks/coverage.py [SIMULATIONS, default 2000]

A test set is simulated by patients: some have two images, some show the pathology (lognormal areas), a network finds a share of it that
varies with the patient, the trial and both, and paints something wrong. The truth is a population of 200,000 patients. `t` is taken of normal trials,
and the paired contrast's p-value of two settings that do not differ. Of the ten pathologies whose mean is taken an ill patient shows several.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from chexseg_ray.evaluation.bootstrap import PatientSums, effective_patients, mean_over_pathologies, patient_weights, pooled_sums
from chexseg_ray.evaluation.contrasts import paired_difference
from chexseg_ray.evaluation.intervals import combined_interval, hierarchical_interval, percentile_interval, t_interval

LEVEL = 0.95
REPLICATES = 1000
QUALITY = -0.2  # logit of the share that is found
TRIAL_SD, PATIENT_SD, BOTH_SD = 0.15, 0.8, 0.3  # of that logit
TOGETHER = 0.6  # correlation of what decides which of the ten pathologies a patient shows
PREVALENCES = (0.4, 0.3, 0.25, 0.2, 0.15, 0.12, 0.08, 0.05, 0.03, 0.02)  # of the ten pathologies whose mean is taken


@dataclass(frozen=True)
class Patients:
    """Images of simulated patients: the patient of each, its difficulty, the true area and the noise of what is painted beside it."""

    rows: npt.NDArray[np.int64]
    difficulty: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, number: int, prevalence: float, rng: np.random.Generator, illness: npt.NDArray[np.float64] | None = None) -> "Patients":
        """`number` patients, 30 % of them with two images; who is ill (standard normal) shows the pathology more often."""
        images = 1 + (rng.random(number) < 0.3)
        rows = np.repeat(np.arange(number), images)
        own = rng.normal(size=number)
        severity = own if illness is None else TOGETHER**0.5 * illness + (1 - TOGETHER) ** 0.5 * own
        positive = (severity < ndtri(prevalence))[rows]
        difficulty = rng.normal(scale=PATIENT_SD, size=number)[rows]
        truth = np.where(positive, np.rint(rng.lognormal(6.0, 0.7, len(rows))), 0)
        wrong = np.where(positive | (rng.random(len(rows)) < 0.15), rng.lognormal(4.5, 0.8, len(rows)), 0)
        return cls(rows, difficulty, truth, wrong)

    def counts(self, quality: float, rng: np.random.Generator, both_sd: float = BOTH_SD) -> npt.NDArray[np.int64]:
        """int64 [N, 1, 3] of a network of this quality."""
        share = expit(quality + self.difficulty + rng.normal(scale=both_sd, size=len(self.rows)))
        found = np.rint(share * self.truth)
        return np.stack([found, np.rint(found + self.wrong), self.truth], axis=-1).astype(np.int64)[:, None]


def true_iou(
    prevalence: float, rng: np.random.Generator, trial_sd: float = TRIAL_SD, both_sd: float = BOTH_SD
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pooled IoU in the population on a grid of qualities: (qualities, values)."""
    grid = QUALITY + trial_sd * np.linspace(-4, 4, 33)
    people = Patients.draw(200_000, prevalence, rng)
    totals = [people.counts(quality, rng, both_sd)[:, 0].sum(axis=0) for quality in grid]
    return grid, np.array([i / (p + t - i) for i, p, t in totals])


def _expected(grid: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    """Over the trials' qualities, of which the grid has four standard deviations on each side."""
    return float(np.average(values, weights=np.exp(-0.5 * np.linspace(-4, 4, len(grid)) ** 2)))


@dataclass(frozen=True)
class Coverage:
    """Shares of simulations whose interval holds the truth, and of false findings of the paired contrast."""

    positives: float
    patients: float
    both: float
    hierarchical: float
    false_findings: float
    blank: float


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
    """Coverage of the intervals over simulated studies."""
    rng = np.random.default_rng([seed, patients, round(1000 * prevalence), trials])
    grid, values = true_iou(prevalence, rng, trial_sd, both_sd)
    expected = _expected(grid, values)
    hits = {"patients": 0, "both": 0, "hierarchical": 0, "false": 0}
    positives = blank = 0
    for simulation in range(simulations):
        people = Patients.draw(patients, prevalence, rng)
        positive = len(np.unique(people.rows[people.truth > 0]))
        positives += positive
        qualities = rng.normal(QUALITY, trial_sd, size=2 * trials)  # two settings that do not differ
        sums = [pooled_sums(people.counts(quality, rng, both_sd), people.rows, patients) for quality in qualities]
        together = PatientSums(*(np.concatenate([getattr(s, part) for s in sums], axis=1) for part in ("numerator", "denominator", "truth")))
        own, weights = together.estimate(), patient_weights(patients, replicates, simulation)
        drawn = together.replicates(weights)
        first = own[:trials]
        one = percentile_interval(float(first[0]), drawn[:, 0], positive, LEVEL)
        both = combined_interval(first.tolist(), drawn[:, :trials], positive, LEVEL).interval
        crossed = hierarchical_interval(float(first.mean()), drawn[:, :trials], LEVEL, rng)
        test = paired_difference(first.tolist(), own[trials:].tolist(), drawn[:, :trials], drawn[:, trials:], positive, LEVEL)
        if any(interval.reason for interval in (one, both, crossed, test.both.interval)):
            blank += 1
            continue
        hits["patients"] += one.low <= float(np.interp(qualities[0], grid, values)) <= one.high
        hits["both"] += both.low <= expected <= both.high
        hits["hierarchical"] += crossed.low <= expected <= crossed.high
        hits["false"] += test.p_value < 1 - LEVEL
    done = max(1, simulations - blank)
    share = {name: hit / done for name, hit in hits.items()}
    return Coverage(positives / simulations, share["patients"], share["both"], share["hierarchical"], share["false"], blank / simulations)


def simulate_mean(patients: int, trials: int, simulations: int, seed: int, replicates: int = REPLICATES) -> Coverage:
    """The same of the mean over ten pathologies, whose prevalences are as different as CheXlocalize's."""
    rng = np.random.default_rng([seed, patients, trials])
    truths = [true_iou(prevalence, rng) for prevalence in PREVALENCES]
    hits = {"patients": 0, "both": 0, "hierarchical": 0, "false": 0}
    blank = few = 0
    for simulation in range(simulations):
        illness = rng.normal(size=patients)
        people = [Patients.draw(patients, prevalence, rng, illness) for prevalence in PREVALENCES]
        most = len(np.unique(np.concatenate([own.rows[own.truth > 0] for own in people])))
        positive = np.array([len(np.unique(own.rows[own.truth > 0])) for own in people])
        defined, weights = positive > 0, patient_weights(patients, replicates, simulation)
        few += int((positive < 20).sum())
        qualities = rng.normal(QUALITY, TRIAL_SD, size=(2 * trials, len(people)))
        sums = [[pooled_sums(own.counts(q, rng), own.rows, patients) for own, q in zip(people, line, strict=True)] for line in qualities]
        own = np.array([[s.estimate()[0] for s in line] for line in sums])[:, defined]
        drawn = np.stack([np.concatenate([s.replicates(weights) for s in line], axis=1) for line in sums])[:, :, defined]
        first, second = drawn[:trials].mean(axis=0), drawn[trials:].mean(axis=0)
        carried, between = (effective_patients(each, positive[defined], most) for each in (first, first - second))
        means, by_trial = own.mean(axis=1), np.stack([mean_over_pathologies(d, np.ones(d.shape[1], dtype=bool)) for d in drawn])
        here = [float(np.interp(q, *truth)) for q, truth, there in zip(qualities[0], truths, defined, strict=True) if there]
        over_trials = [_expected(*truth) for truth, there in zip(truths, defined, strict=True) if there]
        one = percentile_interval(float(means[0]), by_trial[0], carried, LEVEL)
        both = combined_interval(means[:trials].tolist(), by_trial[:trials].T, carried, LEVEL).interval
        crossed = hierarchical_interval(float(means[:trials].mean()), by_trial[:trials].T, LEVEL, rng)
        test = paired_difference(means[:trials].tolist(), means[trials:].tolist(), by_trial[:trials].T, by_trial[trials:].T, between, LEVEL)
        if any(interval.reason for interval in (one, both, crossed, test.both.interval)):
            blank += 1
            continue
        hits["patients"] += one.low <= np.mean(here) <= one.high
        hits["both"] += both.low <= np.mean(over_trials) <= both.high
        hits["hierarchical"] += crossed.low <= np.mean(over_trials) <= crossed.high
        hits["false"] += test.p_value < 1 - LEVEL
    done = max(1, simulations - blank)
    share = {name: hit / done for name, hit in hits.items()}
    return Coverage(few / simulations, share["patients"], share["both"], share["hierarchical"], share["false"], blank / simulations)


def t_coverage(trials: int, simulations: int, seed: int) -> float:
    """Of Student's t over normal trials."""
    rng = np.random.default_rng([seed, trials])
    intervals = [t_interval(rng.normal(0.3, 0.02, size=trials).tolist(), LEVEL) for _ in range(simulations)]
    return float(np.mean([i.low <= 0.3 <= i.high for i in intervals]))


def main() -> None:
    """Print the tables."""
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    error = 100 * 1.96 * (LEVEL * (1 - LEVEL) / simulations) ** 0.5
    print(f"coverage in per cent at level {LEVEL:.0%}, {simulations} simulations (+- {error:.1f}), {REPLICATES} bootstrap replicates")
    for trials in (2, 3, 5, 10):
        print(f"t over {trials:2} normal trials: {100 * t_coverage(trials, 5 * simulations, 0):.1f}")
    names = "| patients  trials and patients  (percentile hierarchical)  false findings  blank"
    alone = f"patients prevalence positive trials {names}"
    shared = {"simulations": simulations, "seed": 0}
    for title, columns, rows in (
        ("one pathology", alone, [(p, q, t, {}) for p in (50, 100, 200, 500) for q in (0.1, 0.3, 0.6) for t in (3, 5)]),
        ("trials that vary four times as much", alone, [(p, 0.3, t, {"trial_sd": 4 * TRIAL_SD}) for p in (200, 500) for t in (3, 5)]),
        ("five times as many studies", alone, [(200, 0.6, 3, {"simulations": 5 * simulations, "seed": 3, "both_sd": sd}) for sd in (BOTH_SD, 1.0)]),
        ("trials that err on patients of their own", alone, [(200, 0.6, t, {"both_sd": 1.0, "trial_sd": sd}) for sd in (0.02, 0.15) for t in (3, 5)]),
    ):
        print(f"{title}\n{columns}")
        _each([(f"{p:8} {q:10.1f} {{:8.0f}} {t:6}", partial(simulate, p, q, t, **{**shared, **more})) for p, q, t, more in rows])
    print(f"mean of ten pathologies\npatients of which with fewer than 20 positives, trials {names}")
    _each([(f"{p:8} {{:19.1f}} {t:6}", partial(simulate_mean, p, t, **shared)) for p in (100, 200, 500) for t in (3, 5)])


def _each(rows: list[tuple[str, Callable[[], Coverage]]]) -> None:
    """Print each row when it is done, in order; rows are simulated side by side."""
    with ProcessPoolExecutor() as pool:
        for (start, _), done in zip(rows, [pool.submit(call) for _, call in rows], strict=True):
            c = done.result()
            _print(start.format(c.positives), c)


def _print(start: str, c: Coverage) -> None:
    cells = f"{100 * c.patients:8.1f}  {100 * c.both:19.1f}  {100 * c.hierarchical:25.1f}  {100 * c.false_findings:14.1f}  {100 * c.blank:5.1f}"
    print(f"{start} | {cells}", flush=True)


if __name__ == "__main__":
    main()
