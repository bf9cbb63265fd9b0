"""The layers of the package, read from its imports.

A module imports from layers below its own and from its own package, nothing else. Imports inside functions and for
the type checker count as well: what a module knows of is what it names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bootagent"

#: Lowest first: modules directly in ``bootagent/``, or packages there. Those of one layer do not know each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"deadline", "errors", "turns"}),
    frozenset({"machine", "aws", "pointer", "user_data"}),
    frozenset({"imds", "beneath", "boottime", "journal", "own_file", "processes", "pull", "shutdown"}),
    frozenset({"footprint", "services"}),
    frozenset({"records", "disks", "mounts", "fstab", "git_repository"}),
    frozenset({"ebs", "environment", "nfs"}),
    frozenset({"hooks", "roster"}),
    frozenset({"instance", "config", "state", "lock", "leaving", "mounted", "release"}),
    frozenset({"traffic"}),
    frozenset({"steps"}),
    frozenset({"sources"}),
    frozenset({"plan"}),
    frozenset({"survey", "readiness", "telling"}),
    frozenset({"agent", "console"}),
    frozenset({"report", "variables", "relay", "daemon", "arguments"}),
    frozenset({"lifecycle"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)

#: Beside the agent's path: all they may know of, and that nobody but the command line knows of them.
ASIDE: dict[str, frozenset[str]] = {
    "publish": frozenset({"errors", "machine", "aws", "pointer", "disks", "mounts", "ebs"}),
    "gc": frozenset({"errors", "machine", "aws", "records", "ebs"}),
    # It stands for what surrounds an instance, so it runs the agent from outside, as everyone does.
    "sandbox": frozenset().union(*LAYERS)
    - {"steps", "sources", "plan", "survey", "agent", "report", "daemon", "lifecycle", "cli", "__main__"},
}
USERS_OF_ASIDE = frozenset({"cli"})

#: A step gets plain fields; what was asked for and what was there before is for the plan to weigh.
STRANGERS_TO_STEPS = frozenset({"config", "state", "instance", "imds"})
#: What the steps share: the protocol.
STEPS_COMMON = "steps.base"

#: Imports from outside that only these modules may have; packages stand for all that is in them.
RESERVED: dict[str, frozenset[str]] = {
    "boto3": frozenset({"aws", "sandbox.api"}),
    "botocore": frozenset({"aws", "sandbox.api"}),
    "moto": frozenset({"sandbox.api"}),
    "werkzeug": frozenset({"sandbox.api"}),
}

#: Who may start processes by other means than Machine.
STARTERS = frozenset({"machine", "sandbox", "daemon"})
_STARTING = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "posix_spawn", "posix_spawnp"}
    | {f"{verb}{how}" for verb in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")},
}

#: Who may write to standard output. The demonstration is a program of its own.
PRINTERS = frozenset({"cli", "sandbox.demo"})

#: Programs that other interpreters run, no part of this one: the sample app of the sandbox.
NOT_OURS = ("sandbox/sample/",)


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name below ``bootagent``, parsed; a package goes by its own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if not str(inside).startswith(NOT_OURS) and inside != Path("__init__.py"):
            parts = inside.with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> Iterator[str]:
    """Every imported name, in full: ``from bootagent import aws`` gives ``bootagent.aws``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def known(tree: ast.Module) -> set[str]:
    """The modules of this package that a module names, as ``MODULES`` has them."""
    found = set()
    for name in imports(tree):
        inside = name.removeprefix("bootagent.")
        if inside == name or inside.startswith("__version__"):
            continue
        # What is imported may be a module, or something in one.
        found.add(inside if inside in MODULES else inside.rpartition(".")[0] or inside)
    return found


def allowed(module: str) -> frozenset[str]:
    """The modules and packages directly in ``bootagent/`` that ``module`` may import from, besides its own."""
    top = module.split(".")[0]
    if top in ASIDE:
        return ASIDE[top]
    below: frozenset[str] = frozenset()
    for layer in LAYERS:
        if top in layer:
            break
        below |= layer
    if top == "steps":
        below -= STRANGERS_TO_STEPS
    return below | (frozenset(ASIDE) if top in USERS_OF_ASIDE else frozenset())


def trespasses(module: str, tree: ast.Module) -> list[str]:
    """Each import of ``module`` that leads where it should not, as a sentence."""
    found = []
    top = module.split(".")[0]
    for name in sorted(known(tree)):
        if name.split(".")[0] == top:
            if top == "steps" and module != "steps" and name not in (STEPS_COMMON, module):
                found.append(f"{module} imports its sibling {name}")
        elif name.split(".")[0] not in allowed(module):
            found.append(f"{module} imports {name}")
    for name in sorted(set(imports(tree))):
        owners = RESERVED.get(name.split(".")[0])
        if owners is not None and not within(module, owners):
            found.append(f"{module} imports {name}")
    return found


def starts(tree: ast.Module) -> list[str]:
    """What a module calls that starts a process. To name subprocess.PIPE, or Popen as a type, is no start."""
    renamed = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in _STARTING
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                called = (module, name)
            case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name):
                called = renamed.get(name, ("", ""))
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=module), attr=name)):
                called = (module, name)
            case _:
                continue
        if called[1] in _STARTING.get(called[0], ()):
            found.append(f"line {node.lineno}: {'.'.join(called)}")
    return found


def prints(tree: ast.Module) -> list[str]:
    """Where a module writes to standard output."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                found.append(f"line {node.lineno}: print")
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "__stdout__"):
                found.append(f"line {node.lineno}: sys.stdout")
    return found


def within(module: str, places: frozenset[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


# --- the package ---------------------------------------------------------------------------------------------


def test_every_module_has_its_place() -> None:
    placed = frozenset().union(*LAYERS) | ASIDE.keys()
    unplaced = {module.split(".")[0] for module in MODULES} - placed
    assert not unplaced, f"say in LAYERS where these belong: {sorted(unplaced)}"


def test_no_module_has_two_places() -> None:
    names = [name for layer in (*LAYERS, ASIDE) for name in layer]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_downwards(module: str) -> None:
    assert trespasses(module, MODULES[module]) == []


@pytest.mark.parametrize("module", [module for module in MODULES if not within(module, STARTERS)])
def test_programs_are_run_by_the_machine_alone(module: str) -> None:
    assert starts(MODULES[module]) == []


@pytest.mark.parametrize("module", [module for module in MODULES if not within(module, PRINTERS)])
def test_only_the_command_line_prints(module: str) -> None:
    assert prints(MODULES[module]) == []


# --- the checks themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("machine", "from bootagent.errors import BootagentError", []),
        ("machine", "from bootagent import __version__, errors", []),
        ("machine", "from bootagent import aws", ["machine imports aws"]),
        ("errors", "import bootagent.machine", ["errors imports machine"]),
        ("state", "def f():\n    from bootagent.plan import Plan", ["state imports plan"]),
        ("steps.current", "from bootagent.steps.base import Step", []),
        ("steps.current", "from bootagent.steps.prune import Prune", ["steps.current imports its sibling steps.prune"]),
        ("steps.current", "from bootagent.steps import prune", ["steps.current imports its sibling steps.prune"]),
        ("steps.current", "from bootagent.config.model import App", ["steps.current imports config.model"]),
        ("steps.current", "from bootagent.state import State", ["steps.current imports state"]),
        ("sources.s3", "from bootagent.config.model import S3", []),
        ("sources.s3", "import boto3.session", ["sources.s3 imports boto3.session"]),
        ("sources.s3", "from mypy_boto3_s3 import S3Client", []),
        ("aws", "import boto3, botocore.config", []),
        (
            "publish.upload",
            "from botocore.exceptions import ClientError",
            ["publish.upload imports botocore.exceptions.ClientError"],
        ),
        ("publish.tree", "from bootagent.config import model", ["publish.tree imports config.model"]),
        ("agent", "from bootagent.publish import publish", ["agent imports publish"]),
        ("cli", "from bootagent.publish import publish", []),
        ("sandbox.session", "from bootagent.config.document import read", []),
        ("sandbox.session", "from bootagent import agent", ["sandbox.session imports agent"]),
        ("sandbox.cloud", "import boto3", ["sandbox.cloud imports boto3"]),
    ],
)
def test_a_trespass_is_found(module: str, source: str, found: list[str]) -> None:
    assert trespasses(module, ast.parse(source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import subprocess\nsubprocess.run(['x'])", ["line 2: subprocess.run"]),
        ("from subprocess import Popen as P\nP(['x'])", ["line 2: subprocess.Popen"]),
        ("import subprocess\nsubprocess.Popen[bytes](['x'])", ["line 2: subprocess.Popen"]),
        ("from subprocess import Popen\nPopen[bytes](['x'])", ["line 2: subprocess.Popen"]),
        ("import os\nos.execvp('x', ['x'])", ["line 2: os.execvp"]),
        ("from subprocess import PIPE, Popen\nmachine.start(['x'], stdin=PIPE)\nx: Popen[bytes]", []),
        ("machine.run(['x'])", []),
    ],
)
def test_a_start_is_found(source: str, found: list[str]) -> None:
    assert starts(ast.parse(source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("print('x')", ["line 1: print"]),
        ("import sys\nsys.stdout.write('x')", ["line 2: sys.stdout"]),
        ("import sys\nsys.stderr.write('x')", []),
        ("self.print('x')", []),
    ],
)
def test_a_print_is_found(source: str, found: list[str]) -> None:
    assert prints(ast.parse(source)) == found
