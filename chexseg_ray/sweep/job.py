"""jobs/sweep.py: run a study."""

from collections.abc import Sequence
from functools import partial

from chexseg_ray.cluster.guardian import EndedError, in_child
from chexseg_ray.command import Asked, run_study_job, study_parser
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError

DESCRIPTION = """\
Run a study: build what is missing of it, and write its report.

The same command again continues where it stopped; with nothing to build it does not start Ray."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code. `arguments` stand in for the command line's."""
    parser = study_parser(DESCRIPTION)
    plan = "print what is built, what is not and why, and what it costs; run nothing"
    parser.add_argument("--plan", action="store_true", help=plan)
    verify = "compare the source images with what was decoded of them; run nothing"
    parser.add_argument("--verify", action="store_true", help=verify)
    return run_study_job(parser, partial(_run, as_program=arguments is None), arguments)


def _run(asked: Asked, as_program: bool) -> int:
    if asked.flags.verify:
        if asked.flags.plan:
            raise InputError("--plan and --verify: give one of them")
        return _verify(asked.config)
    if not as_program or asked.flags.plan:
        return _study(asked)
    try:
        return in_child(partial(_study, asked))
    except EndedError as error:  # in the guardian: the job's process could not say what is kept
        from chexseg_ray.sweep.run import kept_and_next

        for line in kept_and_next(asked.config):
            error.add_note(line)
        raise


def _study(asked: Asked) -> int:
    from chexseg_ray.sweep.run import run_study

    return run_study(asked.config, plan_only=asked.flags.plan, asked=asked.text)


def _verify(config: StudyConfig) -> int:
    from chexseg_ray.store.store import Store
    from chexseg_ray.study.sources import load_study
    from chexseg_ray.sweep.verify import verify_sources

    study, source = load_study(config)
    return verify_sources(config, study, source, Store.open(config.store.root))
