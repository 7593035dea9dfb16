"""jobs/report.py: write the report of a study; jobs/explain.py: print the records behind a number."""

import argparse
from collections.abc import Sequence

from chexseg_ray.command import Asked, Parser, guarded, run_study_job, study_parser
from chexseg_ray.errors import InputError

REPORT = """\
Write the report of a study from what its store holds, whole or half. Builds nothing and does not start Ray."""
EXPLAIN = """\
Why is this number what it is? Print the chain of records behind it, each with what shaped it, down to the sources."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/report.py; returns its exit code. `arguments` stand in for the command line's."""
    return run_study_job(study_parser(REPORT), _report, arguments)


def _report(asked: Asked) -> int:
    from chexseg_ray.report.page import write_report
    from chexseg_ray.store.store import Store
    from chexseg_ray.study.sources import load_study

    write_report(asked.config, load_study(asked.config)[0], Store.open(asked.config.store.root))
    return 0


def explain(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/explain.py; returns its exit code. `arguments` stand in for the command line's."""
    parser = Parser(EXPLAIN, "Exit codes: 0 done, 2 no such record, 75 try again later.")
    record = "a record's folder (STORE/evaluation/0123456789ab) or address (evaluation/0123456789ab, with --store)"
    row = "a line of results.csv by its number (STORE/report/demo/results.csv:17), or the text of a trial's line"
    parser.add_argument("words", nargs="*", metavar="ADDRESS | ROW", help=f"{record}, or {row}")
    parser.add_argument(
        "--store", metavar="ROOT", help="the store's folder or URI, where ADDRESS or ROW does not name it"
    )
    return guarded(parser, _explain, arguments)


def _explain(flags: argparse.Namespace) -> int:
    from chexseg_ray.progress import say
    from chexseg_ray.report.explain import explanation, find_records

    words = [*flags.words, *flags.names]
    if len(words) != 1:
        raise InputError("name one ADDRESS or ROW; see --help")
    for line in explanation(find_records(words[0], flags.store)):
        say(line)
    return 0
