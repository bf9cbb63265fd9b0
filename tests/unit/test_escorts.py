"""The escort's process, as the daemon sees to it: sent, sent again, and the mark that the runs look for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bootagent.daemon import escorts
from bootagent.daemon.child import Child
from bootagent.daemon.escorts import Escorts

pytestmark = pytest.mark.spawns


class Scene:
    """An escort that is a shell script: ``$1`` is its purpose. Each start leaves a line in ``sent``."""

    def __init__(self, root: Path, script: str) -> None:
        self.root, self.sent_path, self.logged = root, root / "sent", list[tuple[str, object]]()
        (root / "run/bootagent").mkdir(parents=True)
        argv = ["/bin/sh", "-c", f'echo "$1" >>{self.sent_path}; {script}', "sh"]
        self.escorts = Escorts(argv, str(root), self._ignore, self._ignore, self._log)

    def _ignore(self, child: Child) -> None:
        pass

    def _log(self, event: str, **fields: object) -> None:
        self.logged.append((event, fields.get("exit_code")))

    def mark(self, purpose: str = "launching") -> Path:
        return Path(str(self.root) + escorts.MARKS[purpose])

    def sent(self) -> list[str]:
        return self.sent_path.read_text().split() if self.sent_path.exists() else []

    def until(self, condition: Callable[[], object]) -> None:
        """Do as the daemon's loop does."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            self.escorts.reap()
            self.escorts.send_what_is_due()
            time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escorts, "AGAIN_SECONDS", 0.1)


def test_one_that_fails_is_sent_again_and_the_launch_is_not_over(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, "test -e good")
    scene.escorts.begin("")
    said = scene.mark().read_text()
    scene.until(lambda: len(scene.sent()) >= 3)
    assert set(scene.sent()) == {"launching"}
    assert scene.mark().read_text() == said, "the launch has waited since then"
    assert scene.logged[0] == ("escort ended", 1)


def test_it_is_sent_again_more_and_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escorts, "AGAIN_SECONDS", 4.0)
    scene = Scene(tmp_path, "kill -9 $$")
    pauses = []
    for _ in range(8):
        scene.escorts.begin("")
        scene.until(lambda: scene.escorts.due() is not None)
        pauses.append(round((scene.escorts.due() or 0) - time.monotonic()))
    assert pauses == [4, 8, 16, 32, 60, 60, 60, 60]


def test_a_verdict_ends_it_and_takes_the_mark_away(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, f"test $(wc -l <{tmp_path}/sent) -ge 2")
    scene.escorts.begin("")
    scene.until(lambda: not scene.mark().exists())
    assert scene.sent() == ["launching"] * 2
    assert scene.escorts.due() is None
    scene.escorts.begin("")
    assert not scene.mark().exists(), "the launch is over"
    # Out of the warm pool, there is another.
    scene.escorts.begin_anew()
    scene.escorts.begin("")
    assert scene.mark().exists()
    scene.escorts.dismiss()


def test_a_mark_of_before_is_made_anew(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "exec sleep 60")
    scene.mark().write_text("0.5\n")
    scene.escorts.begin("")
    assert float(scene.mark().read_text()) == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=5)
    scene.escorts.dismiss()
    assert not scene.mark().exists()


def test_one_that_refuses_the_configuration_is_not_sent_again(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, "exit 2")
    scene.escorts.begin("")
    scene.until(lambda: not scene.mark().exists())
    assert scene.escorts.due() is None
    # Another configuration may be better.
    scene.escorts.begin("")
    scene.until(lambda: len(scene.sent()) == 2)


def test_a_termination_takes_over_from_a_launch_whose_escort_failed(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, "test $1 = terminating || exit 1; test -e stopped && exit 1; exec sleep 60")
    scene.escorts.begin("")
    scene.until(lambda: scene.escorts.due() is not None)
    scene.escorts.begin("spot")
    assert (scene.mark().exists(), scene.mark("terminating").exists()) == (False, True)
    assert scene.escorts.due() is None
    scene.escorts.stopped("spot")
    assert not scene.mark("terminating").exists(), "the services are down"
    scene.until(lambda: scene.sent()[-1] == "terminating")
    scene.escorts.dismiss()


def test_one_that_fails_after_the_stop_is_sent_again_without_a_mark(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, "false")
    scene.escorts.begin("spot")
    scene.escorts.stopped("spot")
    scene.until(lambda: len(scene.sent()) >= 3)
    assert set(scene.sent()) == {"terminating"}
    assert not scene.mark("terminating").exists()
    scene.escorts.begin_anew()
    assert scene.escorts.due() is None, "called off"


def test_no_hook_waits_longer_than_two_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escorts, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(escorts, "MOST_SECONDS", 0.5)
    scene = Scene(tmp_path, "false")
    scene.escorts.begin("")
    scene.until(lambda: not scene.mark().exists())
    assert scene.escorts.due() is None
    assert len(scene.sent()) >= 2
