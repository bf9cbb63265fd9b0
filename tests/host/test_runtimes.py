"""Two real interpreters of one language side by side, chosen by each service's ``.tool-versions``.

mise is the real one, where it is installed. asdf is a stand-in of a few lines, which reads the nearest
``.tool-versions`` as asdf does, behind shims of the form that asdf writes; the interpreters are real in any case.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Agent
from tests.host.stage import App, Stage

PYPY = shutil.which("pypy3", path="/usr/bin")
MISE = shutil.which("mise")
VERSIONS = {"one": "cpython", "two": "pypy"}
ASDF = """\
#!/bin/sh
[ "$1" = exec ] || exit 64
name=$2
shift 2
place=$(pwd -P)
until [ -f "$place/.tool-versions" ]; do
    [ "$place" != "" ] || { echo "no version is set for $name" >&2; exit 126; }
    place=${place%/*}
done
read -r tool version <"$place/.tool-versions"
exec "$ASDF_DATA_DIR/installs/$tool/$version/bin/$name" "$@"
"""
# Says what it is, and stays.
PROGRAM = """\
import platform, time
print(platform.python_implementation(), flush=True)
time.sleep(1000)
"""

pytestmark = pytest.mark.skipif(PYPY is None, reason="pypy3 is not installed")


def install(place: Path, version: str) -> None:
    (place / "bin").mkdir(parents=True)
    (place / "bin/python3").symlink_to({"cpython": "/usr/bin/python3", "pypy": PYPY or ""}[version])


def asdf(root: Path) -> None:
    """An asdf in /opt, as releases before 0.16 lie there, with both interpreters."""
    data = root / "opt/asdf"
    for version in VERSIONS.values():
        install(data / "installs/python" / version, version)
    shim = '#!/usr/bin/env bash\n# asdf-plugin: python cpython\nexec asdf exec "python3" "$@"\n'
    for path, text in (("bin/asdf", ASDF), ("shims/python3", shim)):
        (data / path).parent.mkdir(exist_ok=True)
        (data / path).write_text(text)
        (data / path).chmod(0o755)


def mise(root: Path) -> None:
    """The real mise for the whole machine, with both interpreters linked into it; its shims are links to itself."""
    assert MISE is not None
    program, data = root / "usr/local/bin/mise", root / "usr/local/share/mise"
    program.parent.mkdir(parents=True)
    shutil.copy(MISE, program)  # where anybody may run it
    program.chmod(0o755)
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(root / "home-of-whoever-installs"),
        "MISE_DATA_DIR": str(data),
        "MISE_OFFLINE": "1",
    }
    for version in VERSIONS.values():
        install(root / "opt/pythons" / version, version)
        words = ["link", f"python@{version}", str(root / "opt/pythons" / version)]
        subprocess.run([program, *words], env=env, check=True, capture_output=True, timeout=60)
    subprocess.run([program, "reshim"], env=env, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "manager",
    [asdf, pytest.param(mise, marks=pytest.mark.skipif(MISE is None, reason="mise is not installed"))],
)
def test_two_interpreters_side_by_side(stage: Stage, web: App, agent: Agent, manager: Callable[[Path], None]) -> None:
    manager(stage.root)
    services = "".join(
        f'[apps.web.services.{name}]\ncommand = ["python3", "../say.py"]\ndirectory = "{name}"\n{SLOW}'
        for name in VERSIONS
    )
    # A service of the release's own, which asks for its version where it goes to.
    own = f'[apps.web.services.own]\n{SLOW}[apps.web.services.plain]\ncommand = ["python3", "say.py"]\n{SLOW}'
    stage.configure(web.config(service=services + own + 'runtime = "none"\n'))
    tree = {f"{name}/.tool-versions": f"python {version}\n" for name, version in VERSIONS.items()}
    script = f"#!/bin/sh\nexec 2>&1\ncd {web.deploy_to}/current/two\nexec python3 ../say.py\n"
    web.publish(
        "one",
        {
            **web.tree("one"),
            **tree,
            "say.py": PROGRAM,
            ".tool-versions": "python cpython\n",
            "config/service/own/run": script,
        },
    )
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    await_word(stage, "one", "CPython")
    await_word(stage, "two", "PyPy")
    await_word(stage, "own", "PyPy")
    await_word(stage, "plain", "CPython")
    pids = [web.pid(name) for name in ("one", "two", "own", "plain")]
    assert len({Path(f"/proc/{pid}/exe").resolve() for pid in pids[:2]}) == 2
    assert "/shims:" in variable(pids[2], "PATH")
    assert "/shims" not in variable(pids[3], "PATH")
    assert agent("reconfigure").code == 0
    assert [web.pid(name) for name in ("one", "two", "own", "plain")] == pids

    # The next release asks for the other one.
    web.publish("two", {**web.tree("two"), "say.py": PROGRAM, "one/.tool-versions": "python pypy\n"})
    stage.configure(web.config(service=services.partition("[apps.web.services.two]")[0]))
    assert agent("reconfigure").code == 0
    await_word(stage, "one", "PyPy")


def test_a_manager_that_is_not_there_is_told_before_anything_is_started(stage: Stage, web: App, agent: Agent) -> None:
    job = f'[apps.web.services.job]\ncommand = ["sleep", "1000"]\nruntime = "mise"\n{SLOW}'
    stage.configure(web.config(service=job))
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 1
    assert "there is no shims/ in" in ran.stderr and "/usr/local/share/mise" in ran.stderr
    assert not web.service("job").exists()


SLOW = 'stable_for = "1s"\ncheck = { within = "40s" }\n'


def await_word(stage: Stage, name: str, word: str) -> None:
    """Wait until the last line of a service's log is ``word``."""
    log = stage.root / "var/log/bootagent" / f"web.{name}" / "current"
    deadline = time.monotonic() + 30
    while (log.read_text().splitlines() or [""])[-1].partition(" ")[2] != word:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def variable(pid: int, name: str) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next(pair.partition("=")[2] for pair in pairs if pair.startswith(f"{name}="))
