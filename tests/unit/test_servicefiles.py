"""What a service's process is held to, and that its own script stays as it is."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from bootagent.errors import BootagentError, MachineError
from bootagent.services.servicefiles import FREE, MOST_FILES, OWN_RUN, Confinement, confined, from_command, from_release

FILES = (("finish", b"f", 0o755), ("run", b"#!/bin/sh\nexec sleep 1\n", 0o755))


def test_a_service_that_is_held_to_nothing_is_left_alone() -> None:
    assert confined(FILES, FREE) is FILES


def test_ours_goes_before_the_service_s_own_run_which_is_unchanged() -> None:
    held = confined(FILES, Confinement("027", memory=2**28, open_files=64, core=0, file_size=1))
    files = {path: content for path, content, _ in held}
    assert files[OWN_RUN] == FILES[1][1]
    assert files["finish"] == b"f"
    assert files["run"].decode().splitlines() == [
        "#!/bin/sh",
        "umask 027",
        "/usr/bin/prlimit --pid $$ --as=268435456 --nofile=64 --core=0 --fsize=1 2>&1 || exit 111",
        "exec ./run.own",
    ]


def test_a_umask_alone_needs_no_program() -> None:
    (_, script, mode), *_ = confined(FILES, Confinement("77"))
    assert script == b"#!/bin/sh\numask 77\nexec ./run.own\n"
    assert mode == 0o755


def test_zero_is_a_limit_too() -> None:
    script = Confinement(core=0).script("x")
    assert script is not None and b"--core=0" in script


@pytest.mark.spawns
def test_root_raises_only_what_is_too_low() -> None:
    """Whoever has asked for no more than there is needs no right to raise it, and keeps the soft limit he has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lines = Confinement(open_files=64, core=0).raising()
    assert len(lines) == 2
    script = "; ".join([*lines, "ulimit -Sn; ulimit -Hn"])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == ([str(soft), str(hard)], "")
    (line,) = Confinement(open_files=hard + 1).raising()
    assert line.endswith(f" -ge {hard + 1} ] || prlimit --pid $$ --nofile=:{hard + 1}")
    assert FREE.raising() == []


def test_more_files_than_the_kernel_gives_anybody_are_refused() -> None:
    most = int(MOST_FILES.read_text())
    Confinement(open_files=most).check("web.server")
    with pytest.raises(MachineError, match=rf"web.server wants limits.open_files = {most + 1}, and .* allows {most} "):
        Confinement(open_files=most + 1).check("web.server")


def test_a_release_with_a_file_of_our_name_is_told() -> None:
    with pytest.raises(BootagentError, match=r"file run\.own"):
        confined((*FILES, (OWN_RUN, b"", 0o644)), Confinement("027"))


def test_what_a_release_keeps_from_others_stays_so(tmp_path: Path) -> None:
    modes = {"run": 0o644, "finish": 0o700, "env/SECRET": 0o600, "env/NAME": 0o664}
    for path, mode in modes.items():
        file = tmp_path / "service/web" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(mode)
    found = {path: mode for path, _, mode in from_release(tmp_path, "service/web")}
    assert found == {"run": 0o755, "finish": 0o700, "env/SECRET": 0o600, "env/NAME": 0o644}


def test_a_command_runs_in_its_directory_word_for_word() -> None:
    ((_, script, _),) = from_command(Path("/srv/web app/current/api"), ("env", "A=b c", "$HOME"))
    assert b"\ncd '/srv/web app/current/api' || exit 111\nexec env 'A=b c' '$HOME'\n" in script
