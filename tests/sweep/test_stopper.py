"""When a sweep whose storage fails gives up (faults.md 25)."""

from chexseg_ray.sweep.trials import MOST_STOPPED, _end_if_storage_fails


def test_the_stopper_counts_trials_and_not_their_reports() -> None:
    stopper = _end_if_storage_fails()
    for trial in range(MOST_STOPPED):
        assert not stopper.stop_all(), "a trial may be alone with its fault"
        for _ in range(5):
            assert not stopper(f"trial{trial}", {"built": False, "stopped": "full"})
        assert not stopper(f"other{trial}", {"built": True})
    assert stopper.stop_all()
