"""Coverage of every interval where the truth is known, by number of patients, prevalence and trials.

    python benchmarks/coverage.py [SIMULATIONS, default 2000]

A test set is simulated by patients: some have two images, some show the pathology (lognormal areas), a network finds a share of it that
varies with the patient, the trial and both, and paints something wrong. The truth is a population of 200,000 patients. `t` is taken of normal trials,
and the paired contrast's p-value of two settings that do not differ.
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from chexseg_ray.evaluation.bootstrap import PatientSums, mean_over_pathologies, patient_weights, pooled_sums
from chexseg_ray.evaluation.contrasts import paired_difference
from chexseg_ray.evaluation.intervals import combined_interval, hierarchical_interval, percentile_interval, t_interval

LEVEL = 0.95
REPLICATES = 1000
QUALITY = -0.2  # logit of the share that is found
TRIAL_SD, PATIENT_SD, BOTH_SD = 0.15, 0.8, 0.3  # of that logit


@dataclass(frozen=True)
class Patients:
    """Images of simulated patients: the patient of each, its difficulty, the true area and the noise of what is painted beside it."""

    rows: npt.NDArray[np.int64]
    difficulty: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, number: int, prevalence: float, rng: np.random.Generator) -> "Patients":
        """`number` patients, 30 % of them with two images."""
        images = 1 + (rng.random(number) < 0.3)
        rows = np.repeat(np.arange(number), images)
        positive = (rng.random(number) < prevalence)[rows]
        difficulty = rng.normal(scale=PATIENT_SD, size=number)[rows]
        truth = np.where(positive, np.rint(rng.lognormal(6.0, 0.7, len(rows))), 0)
        wrong = np.where(positive | (rng.random(len(rows)) < 0.15), rng.lognormal(4.5, 0.8, len(rows)), 0)
        return cls(rows, difficulty, truth, wrong)

    def counts(self, quality: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """int64 [N, 1, 3] of a network of this quality."""
        share = expit(quality + self.difficulty + rng.normal(scale=BOTH_SD, size=len(self.rows)))
        found = np.rint(share * self.truth)
        return np.stack([found, np.rint(found + self.wrong), self.truth], axis=-1).astype(np.int64)[:, None]


def true_iou(prevalence: float, rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pooled IoU in the population on a grid of qualities: (qualities, values)."""
    grid = QUALITY + TRIAL_SD * np.linspace(-4, 4, 33)
    people = Patients.draw(200_000, prevalence, rng)
    totals = [people.counts(quality, rng)[:, 0].sum(axis=0) for quality in grid]
    return grid, np.array([i / (p + t - i) for i, p, t in totals])


@dataclass(frozen=True)
class Coverage:
    """Shares of simulations whose interval holds the truth, and of false findings of the paired contrast."""

    positives: float
    patients: float
    both: float
    hierarchical: float
    false_findings: float
    blank: float


def simulate(patients: int, prevalence: float, trials: int, simulations: int, seed: int, replicates: int = REPLICATES) -> Coverage:
    """Coverage of the intervals over simulated studies."""
    rng = np.random.default_rng([seed, patients, round(1000 * prevalence), trials])
    grid, values = true_iou(prevalence, rng)
    expected = float(np.average(values, weights=np.exp(-0.5 * ((grid - QUALITY) / TRIAL_SD) ** 2)))
    hits = {"patients": 0, "both": 0, "hierarchical": 0, "false": 0}
    positives = blank = 0
    for simulation in range(simulations):
        people = Patients.draw(patients, prevalence, rng)
        positive = len(np.unique(people.rows[people.truth > 0]))
        positives += positive
        qualities = rng.normal(QUALITY, TRIAL_SD, size=2 * trials)  # two settings that do not differ
        sums = [pooled_sums(people.counts(quality, rng), people.rows, patients) for quality in qualities]
        together = PatientSums(np.concatenate([s.numerator for s in sums], axis=1), np.concatenate([s.denominator for s in sums], axis=1))
        own, weights = together.estimate(), patient_weights(patients, replicates, simulation)
        drawn = together.replicates(weights)
        first, mean = own[:trials], mean_over_pathologies(drawn[:, :trials], np.ones(trials, dtype=bool))
        one = percentile_interval(float(first[0]), drawn[:, 0], positive, LEVEL)
        both = combined_interval(first.tolist(), mean, positive, LEVEL).interval
        crossed = hierarchical_interval(float(first.mean()), drawn[:, :trials], LEVEL, rng)
        test = paired_difference(first.tolist(), own[trials:].tolist(), mean, drawn[:, trials:].mean(axis=1), positive, LEVEL)
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
    print("patients prevalence positive trials | patients  trials and patients  (percentile hierarchical)  false findings  blank")
    for patients in (50, 100, 200, 500):
        for prevalence in (0.1, 0.3, 0.6):
            for trials in (3, 5):
                c = simulate(patients, prevalence, trials, simulations, 0)
                cells = f"{patients:8} {prevalence:10.1f} {c.positives:8.0f} {trials:6} | {100 * c.patients:8.1f}  {100 * c.both:19.1f}"
                print(f"{cells}  {100 * c.hierarchical:25.1f}  {100 * c.false_findings:14.1f}  {100 * c.blank:5.1f}", flush=True)


if __name__ == "__main__":
    main()
