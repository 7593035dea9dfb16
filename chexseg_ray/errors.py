"""The two errors that a user can act on, with the exit code of the job that they end, and as data between processes."""


class InputError(ValueError):
    """Bad config or data: one line naming the file, row or field, the rule, and what to do. A retry will not help."""

    exit_code = 2


class TransientError(RuntimeError):
    """Something outside failed for now (storage, a claim held by another driver). A retry may help."""

    exit_code = 75


def fault_of(error: InputError | TransientError) -> dict[str, str]:
    """Turn an error into JSON data, which a Ray task or worker hands back past Ray's own wrapping and retries.

    Args:
        error: the error to turn into data.

    Returns:
        {"fault": "transient" or "input", "message": the error's text}.
    """
    return {"fault": "transient" if isinstance(error, TransientError) else "input", "message": str(error)}


def raise_fault(data: dict[str, str]) -> None:
    """Raise the error that `fault_of` turned into data; do nothing with data that hold no fault.

    Args:
        data: what a task or worker handed back.

    Raises:
        InputError: the data hold one; TransientError likewise.
    """
    if "fault" in data:
        kinds = {"input": InputError, "transient": TransientError}
        raise kinds[data["fault"]](data["message"])
