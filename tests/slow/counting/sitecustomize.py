"""Writes down, in every process of a study, which steps are begun and committed and which updates are done.

Python imports a module of this name at its start. The file that CHEXSEG_COUNTS names gets a line for each: `begun`,
`built` or `update`, and where. `events.py` reads it.
"""

import importlib.abc
import importlib.machinery
import os
import sys


def _note(*words: object) -> None:
    with open(os.environ["CHEXSEG_COUNTS"], "ab", buffering=0) as stream:
        stream.write(("\t".join(map(str, words)) + "\n").encode())


def _count_steps(module) -> None:
    new_attempt, commit = module.Store.new_attempt, module.Store.commit

    def counted_attempt(self, step):
        _note("begun", step.address)
        return new_attempt(self, step)

    def counted_commit(self, record):
        commit(self, record)
        _note("built", record.address)

    module.Store.new_attempt, module.Store.commit = counted_attempt, counted_commit


def _count_updates(module) -> None:
    updated = module.Telemetry.updated

    def counted(self, update):
        if self._shows:
            _note("update", self._folder, update)
        updated(self, update)

    module.Telemetry.updated = counted


_WRAPPED = {"chexseg_ray.store.store": _count_steps, "chexseg_ray.engine.telemetry": _count_updates}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _WRAPPED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _WRAPPED[name](module)

        spec.loader.exec_module = exec_module
        return spec


if "CHEXSEG_COUNTS" in os.environ:
    sys.meta_path.insert(0, _Finder())
