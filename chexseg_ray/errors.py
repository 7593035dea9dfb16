"""The two errors a user can act on, each with the exit code of the job that it ends, and how they travel between processes."""


class InputError(ValueError):
    """Bad config or data: one line naming the file, row or field, the rule, and what to do. A retry will not help."""

    exit_code = 2


class TransientError(RuntimeError):
    """Something outside failed for now (storage, a claim held by another driver). A retry may help."""

    exit_code = 75


def fault_of(error: InputError | TransientError) -> dict[str, str]:
    """An error as JSON data: what a Ray task or worker hands back, past Ray's own wrapping and retries."""
    return {"fault": "transient" if isinstance(error, TransientError) else "input", "message": str(error)}


def raise_fault(data: dict[str, str]) -> None:
    """Raise the error that `fault_of` made data of; nothing when the data are no fault."""
    if "fault" in data:
        raise {"input": InputError, "transient": TransientError}[data["fault"]](data["message"])
