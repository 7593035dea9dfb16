"""The two errors a user can act on; each carries the exit code of the job that it ends."""


class InputError(ValueError):
    """Bad config or data: one line naming the file, row or field, the rule, and what to do. A retry will not help."""

    exit_code = 2


class TransientError(RuntimeError):
    """Something outside failed for now (storage, a claim held by another driver). A retry may help."""

    exit_code = 75
