"""jobs/sweep.py: run a study."""

from collections.abc import Sequence

from chexseg_ray.command import Asked, run_study_job, study_parser

DESCRIPTION = """\
Run a study: build what is missing of it, and write its report.

The same command again continues where it stopped; with nothing to build it does not start Ray."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. `arguments` stand in for the command line's."""
    parser = study_parser(DESCRIPTION)
    plan = "print what is built, what is not and why, and what it costs; run nothing"
    parser.add_argument("--plan", action="store_true", help=plan)
    return run_study_job(parser, _run, arguments)


def _run(asked: Asked) -> int:
    from chexseg_ray.sweep.run import run_study

    return run_study(asked.config, plan_only=asked.flags.plan, asked=asked.text)
