"""What guards.py says of a guard that is caught, survives, or is not where the list says."""

from pathlib import Path

import pytest
from guards import Guard, take_out

CODE = "def half(x):\n    if x < 0:\n        raise ValueError\n    while x > 9:\n        x -= 1\n    return x // 2\n"
TEST = """
import pytest
from code_of_ours import half
def test_negative():
    with pytest.raises(ValueError):
        half(-1)
def test_even():
    assert half(4) == 2
def test_large():
    assert half(12) == 4
"""


@pytest.mark.parametrize(
    ("text", "without", "test", "said"),
    [
        ("x < 0", "False", "test_negative", "caught"),
        ("x < 0", "False", "test_even", "SURVIVED"),
        ("x < 0", "False", "test_odd", "pytest ends with 4"),
        ("x -= 1", "pass", "test_large", "caught (no end)"),
        ("x == 0", "False", "test_even", "text not found"),
        ("x", "y", "test_even", "text not found"),
    ],
)
def test_a_guard_is_taken_out_and_put_back(text: str, without: str, test: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "code_of_ours.py").write_text(CODE)
    (tmp_path / "test_ours.py").write_text(TEST)
    guard = Guard("a guard", "code_of_ours.py", text, without, (f"test_ours.py::{test}",), 3.0 * ("no end" in said))
    assert take_out(guard, tmp_path, 60.0) == said
    assert (tmp_path / "code_of_ours.py").read_text() == CODE
