"""The package's rooms, floors and arrows, read from the imports in its source.

    python tests/architecture/rooms.py      prints the rooms from the top floor down

A room is a folder of the package, or a file directly in it. An arrow is an import between two rooms, inside functions
too. A room's floor is 1 plus the highest floor of the rooms that it imports.
"""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "chexseg_ray"
FILES = tuple(path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py")


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Return the names of the modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative imports hide their room"
            assert node.level == 0, f"{path}: relative imports hide their room"
            found.add(node.module)
            if node.module == "chexseg_ray":
                found |= {f"chexseg_ray.{alias.name}" for alias in node.names}
    return frozenset(found)


def room_of(path: Path) -> str:
    """Return the room of a file of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Return the other rooms that a file imports."""
    rooms = {module.split(".")[1] for module in imported_modules(path) if module.startswith("chexseg_ray.")}
    return rooms - {room_of(path)}


def arrows() -> dict[str, Counter[str]]:
    """Return, for each room, the rooms that it imports, with the number of its files that do."""
    found: dict[str, Counter[str]] = {room_of(path): Counter() for path in FILES}
    for path in FILES:
        found[room_of(path)].update(imported_rooms(path))
    return found


def circles() -> list[str]:
    """Return the ways on which rooms import themselves through others, as `a -> b -> a`."""
    below = arrows()
    found: list[str] = []

    def follow(room: str, way: tuple[str, ...]) -> None:
        """Add every circle that begins with this way; `room` is its end."""
        for other in sorted(below[room]):
            if other == way[0]:
                found.append(" -> ".join([*way, other]))
            elif other not in way and other > way[0]:  # each circle once, from its first room in the alphabet
                follow(other, (*way, other))

    for room in sorted(below):
        follow(room, (room,))
    return found


def floors() -> dict[str, int]:
    """Return the floor of each room; there must be no circle."""
    below = arrows()

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in below[room]), default=0)

    return {room: floor(room) for room in below}


def main() -> None:
    """Print the rooms from the top floor down, or the circles if there are any."""
    below = arrows()
    lines: Counter[str] = Counter()
    for path in FILES:
        lines[room_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    found = circles()
    if found:
        print("circles:", *found, sep="\n  ")
        return
    floor_of = floors()
    for room in sorted(floor_of, key=lambda name: (-floor_of[name], name)):
        imported = ", ".join(sorted(below[room])) or "nothing"
        print(f"floor {floor_of[room]}  {room:<13} {lines[room]:>5} lines  imports {imported}")
    whole = sum(lines.values())
    num_arrows = sum(len(rooms) for rooms in below.values())
    largest, most = lines.most_common(1)[0]
    counts = f"{len(floor_of)} rooms, {max(floor_of.values())} floors, {num_arrows} arrows, no circle, {whole} lines"
    print(f"{counts}, largest {largest} ({most / whole:.0%})")


if __name__ == "__main__":
    main()
