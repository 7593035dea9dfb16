"""jobs/store.py: check a store, and clean it up."""

import argparse
import os
from collections.abc import Sequence

from chexseg_ray.command import Parser, find_config, guarded, is_override
from chexseg_ray.errors import InputError

DESCRIPTION = """\
verify STORE               read every file of a store and compare it with its record
clean STORE [CONFIG ...]   list what is left over: attempts without a record, old training states, temporary files;
                           with configs (files or names, and overrides for all of them) also the steps that none of
                           them names. Nothing is deleted without --delete."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/store.py; returns its exit code. `arguments` stand in for the command line's."""
    parser = Parser(DESCRIPTION, "Exit codes: 0 done, 2 something is damaged, 75 try again later.")
    words = "verify or clean, and the store's folder or URI"
    parser.add_argument("words", nargs="*", metavar="verify STORE | clean STORE [CONFIG ...]", help=words)
    parser.add_argument("--delete", action="store_true", help="clean: delete what is listed, while no run may use it")
    unclaimed = "clean --delete: the store is an object store, and no run uses it now"
    parser.add_argument("--unclaimed", action="store_true", help=unclaimed)
    return guarded(parser, _run, arguments)


def _run(flags: argparse.Namespace) -> int:
    from chexseg_ray.store.store import Store

    action, names = flags.words[:1], [*flags.words[1:], *flags.names]
    if action not in (["verify"], ["clean"]) or not all(names) or not names:
        raise InputError("write verify STORE, or clean STORE [CONFIG ...]; see --help")
    store = Store.open(names[0], "STORE")
    if store.is_local and not os.path.isdir(store.path("")):
        raise InputError(f"{names[0]}: is no folder: name a store, as store.root does")
    if action == ["verify"]:
        from chexseg_ray.upkeep.verify import verify

        if len(names) > 1 or flags.delete:
            raise InputError("verify takes one STORE and no flag; see --help")
        return verify(store)
    from chexseg_ray.config.parse import load_config
    from chexseg_ray.upkeep.clean import clean

    overrides = [word for word in names[1:] if is_override(word)]
    configs = [load_config(find_config(name), overrides) for name in names[1:] if not is_override(name)]
    if overrides and not configs:
        raise InputError(f"{overrides[0]}: an override without a config: name the config, such as demo")
    return clean(store, configs, delete=flags.delete, unclaimed=flags.unclaimed)
