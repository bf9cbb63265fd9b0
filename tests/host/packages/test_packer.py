"""The Packer template, judged by the real Packer."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.host.packages.conftest import CHECKOUT, Built, needs

TEMPLATE = CHECKOUT / "packaging/packer"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The template for the Packer that is here: from 1.7 on, the builder is a plugin that only the network brings."""
    needs("packer")
    shown = subprocess.run(
        ["packer", "-machine-readable", "version"], capture_output=True, text=True, check=True
    ).stdout
    version = next(line.split(",")[-1] for line in shown.splitlines() if ",version," in line)
    if tuple(map(int, version.split(".")[:2])) >= (1, 7):
        return TEMPLATE
    shutil.copy(TEMPLATE / "bootagent.pkr.hcl", tmp_path)
    return tmp_path


def packer(place: Path, *words: str) -> Ran:
    """Run packer on a template."""
    home = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(place), "CHECKPOINT_DISABLE": "1"}
    done = subprocess.run(["packer", *words, str(place)], capture_output=True, text=True, check=False, env=home)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_the_template_is_valid(template: Path, built: Built, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("")
    syntax = ["-syntax-only"] if template == TEMPLATE else []
    words = ["validate", *syntax, f"-var=config={config}", f"-var=deb={built.deb}"]
    ran = packer(template, *words)
    assert ran.code == 0, ran.stdout + ran.stderr
    if not syntax:
        assert packer(template, *words[:-1], "-var=deb=/nowhere.deb").code == 1


def test_it_is_formatted(template: Path) -> None:
    ran = packer(template, "fmt", "-check", "-diff")
    assert (ran.code, ran.stdout) == (0, "")


def test_the_shell_in_it_is_a_shells() -> None:
    """Each line of the provisioner, as ``sh -eu`` will read it."""
    text = (TEMPLATE / "bootagent.pkr.hcl").read_text()
    inline = text[text.index("inline = [") :].partition("]")[0]
    lines = [json.loads(line.strip().rstrip(",")) for line in inline.splitlines()[1:] if line.strip().startswith('"')]
    assert len(lines) > 5
    subprocess.run(["sh", "-n"], input="\n".join(lines).encode(), check=True)
