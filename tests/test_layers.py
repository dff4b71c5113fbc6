"""The structure of the code: imports go down, no circles, no private names, short functions.

Read from the syntax trees, so nothing is imported.
"""

import ast
import pathlib
import statistics

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE, RUNNERS, CONFIGS = "jaxreward", "experiments", "configs"

LAYERS = (
    ("jaxreward",),  # modules directly in the package: types, masked, pytree, channel, ...
    ("kernels",),
    ("transforms", "losses", "networks"),
    ("policies", "rewards", "curation", "evaluation", "search"),
    ("tasks",),
    ("training",),
    ("experiments",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

MEDIAN_LINES, P90_LINES, MOST_LINES, FILE_LINES = 16, 50, 80, 450


def sources():
    """Tree of every module by dotted name, tests and configs aside."""
    files = [path for folder in (PACKAGE, RUNNERS) for path in (ROOT / folder).rglob("*.py")]
    return {dotted(path): ast.parse(path.read_text()) for path in sorted(files)}


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """`jaxreward.a.b` is in room `a`, `jaxreward.types` in `jaxreward`."""
    parts = module.split(".")
    if parts[0] == PACKAGE:
        return parts[1] if len(parts) > 1 and parts[1] in LEVEL else PACKAGE
    return parts[0]


def own_imports(tree, modules):
    """`(module, imported name or None, line)` of the imports of our own modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in modules:
                    yield submodule, None, node.lineno
                elif node.module in modules:
                    yield node.module, alias.name, node.lineno


def module_aliases(tree, modules):
    """Local names that stand for our own modules."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            names.update((a.asname, a.name) for a in node.names if a.asname and a.name in modules)
    return names


def is_private(name):
    return name is not None and name.startswith("_") and not name.startswith("__")


def upward_imports(trees):
    """Imports of a room that is not lower, as text."""
    for module, tree in trees.items():
        for target, _, line in own_imports(tree, trees):
            own, other = room(module), room(target)
            if own != other and LEVEL[other] >= LEVEL[own]:
                yield f"{module}:{line} imports {target}: {other} is not below {own}"


def private_uses(trees):
    """Private names of one module used in another, as text."""
    for module, tree in trees.items():
        for target, name, line in own_imports(tree, trees):
            if is_private(name) or is_private(target.rsplit(".", 1)[-1]):
                yield f"{module}:{line} imports {name or target} of {target}"
        aliases = module_aliases(tree, trees)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in aliases and is_private(node.attr):
                    yield f"{module}:{node.lineno} uses {aliases[node.value.id]}.{node.attr}"


def cycle(graph):
    """A list of modules that import each other in a circle, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module):] + [module]
        if module in done:
            return None
        path.append(module)
        found = next(filter(None, map(visit, sorted(graph[module]))), None)
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(graph))), None)


def import_graph(trees):
    return {
        module: {target for target, _, _ in own_imports(tree, trees)} - {module}
        for module, tree in trees.items()
    }


def function_lengths(trees):
    """Lines of every function and method, by `module:name`."""
    return {
        f"{module}:{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


@pytest.fixture(scope="module", name="trees")
def parsed():
    return sources()


def test_every_module_is_in_a_room(trees):
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(LEVEL), f"rooms without a layer: {folders - set(LEVEL)}"
    assert len(trees) > 20


def test_imports_go_down(trees):
    assert sorted(set(upward_imports(trees))) == []


def test_configs_import_only_configs_and_the_config_library():
    allowed = {"ml_collections", CONFIGS, "math", "numpy"}
    for path in (ROOT / CONFIGS).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name}:{node.lineno} imports {name}"


def test_no_import_cycle(trees):
    assert cycle(import_graph(trees)) is None


def test_no_private_name_of_another_module(trees):
    assert sorted(set(private_uses(trees))) == []


def test_function_lengths(trees):
    lengths = function_lengths(trees)
    ordered = sorted(lengths.values())
    longest = {name: n for name, n in lengths.items() if n > MOST_LINES}
    assert longest == {}
    assert statistics.median(ordered) <= MEDIAN_LINES
    assert ordered[int(0.9 * len(ordered))] <= P90_LINES


def test_file_lengths():
    files = [p for folder in (PACKAGE, RUNNERS, CONFIGS) for p in (ROOT / folder).rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in lengths.items() if n > FILE_LINES} == {}


# The checks themselves can fail


def trees_of(**modules):
    return {name.replace("__", "."): ast.parse(text) for name, text in modules.items()}


def test_an_upward_a_sideways_and_a_private_import_are_found():
    trees = trees_of(
        jaxreward__types="x = 1",
        jaxreward__losses__policy="from jaxreward.training import step",
        jaxreward__training__step="from jaxreward.types import _x\nfrom jaxreward import types",
        jaxreward__transforms__noise="import jaxreward.losses.policy",
        experiments__run="from jaxreward.training import step as s\nprint(s._state)",
    )
    upward = list(upward_imports(trees))
    assert len(upward) == 2
    assert "jaxreward.losses.policy:1 imports jaxreward.training.step" in upward[0]
    assert "losses is not below transforms" in upward[1]
    private = list(private_uses(trees))
    assert sorted(private) == [
        "experiments.run:2 uses jaxreward.training.step._state",
        "jaxreward.training.step:1 imports _x of jaxreward.types",
    ]


def test_a_cycle_is_found():
    trees = trees_of(
        jaxreward__a="from jaxreward import b", jaxreward__b="import jaxreward.c",
        jaxreward__c="from jaxreward.a import f",
    )
    circle = ["jaxreward.a", "jaxreward.b", "jaxreward.c", "jaxreward.a"]
    assert cycle(import_graph(trees)) == circle
    del trees["jaxreward.c"]
    assert cycle(import_graph(trees)) is None
