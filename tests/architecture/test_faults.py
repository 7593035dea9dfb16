"""The page on faults and the list of guards name what is there."""

import ast
import re
from functools import cache

import pytest
from guards import GUARDS, REPOSITORY, Guard, read_guards

PAGE = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| .* \| (.*) \|$", re.MULTILINE)


@cache
def defined_in(path: str) -> set[str]:
    """The names of the test functions of a file; none where there is no such file."""
    file = REPOSITORY / path
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    return name.partition("[")[0] in defined_in(path) if name else bool(defined_in(path))


def test_each_of_the_36_faults_has_a_test() -> None:
    rows = {int(number): re.findall(r"`(tests/[^`]+)`", tests) for number, tests in ROW.findall(PAGE) if "::" in tests}
    assert sorted(rows) == list(range(1, 37))
    for number, tests in rows.items():
        assert tests, number
        assert [test for test in tests if not is_there(test)] == [], number


def test_the_exit_codes_are_those_that_help_prints() -> None:
    from chexseg_ray.command import EXIT_CODES

    codes = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]*\|$", PAGE, re.MULTILINE)
    assert [int(code) for code in codes] == [0, 2, 3, 75, 130, 143]
    assert set(re.findall(r"\d+", EXIT_CODES)) == set(codes)


@pytest.mark.parametrize("guard", read_guards(), ids=lambda guard: guard.name)
def test_a_guard_stands_once_where_the_list_says(guard: Guard) -> None:
    text = (REPOSITORY / guard.file).read_text(encoding="utf-8")
    assert text.count(guard.text) == 1, f"{GUARDS.name}: {guard.name}: {guard.file} has changed"
    assert guard.without != guard.text
    if guard.file.endswith(".py"):
        compile(text.replace(guard.text, guard.without), guard.file, "exec")
    assert guard.tests
    assert [test for test in guard.tests if not is_there(test)] == []


def test_guards_have_names_of_their_own() -> None:
    names = [guard.name for guard in read_guards()]
    assert len(set(names)) == len(names) >= 40
