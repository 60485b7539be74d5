"""Which part of the package may import which: nothing imports upwards, and there are no circles."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import zonoplug

PACKAGE = Path(zonoplug.__file__).parent

# From the ground up. A module may import its own layer and those below; the longest prefix that fits is its layer.
LAYERS = (
    ("errors", "registry", "clock", "exact_rows", "version"),
    ("specification",),
    ("domain",),
    ("relaxations",),
    ("transformers",),
    ("reduction",),
    ("io",),
    ("certificates",),
    ("lirpa.adaptations", "lirpa.ascent", "lirpa.host", "lirpa.plain_torch", "lirpa.operators"),
    ("lirpa.host_operators",),
    ("lirpa.fusion",),
    ("lirpa.compat", "lirpa.runtime_errors"),
    ("lirpa.forward", "lirpa.methods", "lirpa.trust"),
    ("lirpa.backward",),
    ("lirpa",),
    ("verify.components", "verify.outcome", "verify.statistics"),
    ("verify.problem",),
    ("verify.subdomains",),
    ("verify.constraints",),
    ("verify.branching",),
    ("verify.bounds",),
    ("verify.attack", "verify.leaf_record", "verify.observer", "verify.progress"),
    ("verify.search",),
    ("verify",),
    ("explain", "testing"),
    ("report",),
    ("",),
)  # fmt: skip


@cache
def imports():
    """Module -> the package's modules that it imports, anywhere in its text: in functions and for types too."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    names = {name.removesuffix("__init__").rstrip("."): path for name, path in paths.items()}
    found = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "zonoplug":
                module = node.module.partition(".")[2]
                inner = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
                found[name] |= {one if one in names else module for one in inner}
            elif isinstance(node, ast.Import):
                found[name] |= {one.name[9:] for one in node.names if one.name.startswith("zonoplug.")}
        found[name].discard(name)
    return found


def layer(module):
    fits = {prefix: level for level, names in enumerate(LAYERS) for prefix in names}
    parts = module.split(".")
    return next(fits[prefix] for end in range(len(parts), -1, -1) if (prefix := ".".join(parts[:end])) in fits)


def test_every_import_is_of_a_module_that_exists():
    assert {target for targets in imports().values() for target in targets} <= set(imports())


def test_nothing_imports_upwards():
    upwards = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in targets
        if layer(target) > layer(name)
    ]
    assert not upwards


def test_no_circle():
    """Modules without imports are taken away until none is left; what stays lies on a circle or above one."""
    left = dict(imports())
    while done := {name for name, targets in left.items() if not targets & set(left)}:
        left = {name: targets for name, targets in left.items() if name not in done}
    assert not left


def test_about_ten_files_in_a_room():
    rooms = [PACKAGE / "verify", PACKAGE / "lirpa"]
    rooms += [folder for room in rooms for folder in room.iterdir() if folder.is_dir()]
    assert {str(room): count for room in rooms if (count := len(list(room.glob("*.py")))) > 13} == {}
