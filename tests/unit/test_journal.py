"""The journal: whole lines, whatever happens to the run."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest

from bootagent import journal
from bootagent.journal import Journal, Record, read_runs
from bootagent.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def file(machine: Machine) -> Path:
    return machine.real(journal.PATH)


def lines(machine: Machine) -> list[Record]:
    return [json.loads(line) for line in file(machine).read_text().splitlines()]


def test_a_record_has_the_run_the_event_and_two_clocks(machine: Machine) -> None:
    heard: list[Record] = []
    log = Journal(machine, heard.append)
    log.record("run-begin", command="run", pid=1)
    (entry,) = lines(machine)
    assert heard == [entry]
    assert (entry["run"], entry["event"], entry["command"], entry["pid"]) == (log.run, "run-begin", "run", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["at"])
    assert 0 <= entry["t"] < 60


def test_whatever_is_told_is_one_line(machine: Machine) -> None:
    log = Journal(machine)
    log.record("note", step="a\nb\r\u2028\x85c\x1e\0", path=Path("/x"), nothing=None)
    (entry,) = lines(machine)
    assert (entry["step"], entry["path"], entry["nothing"]) == ("a\nb\r\u2028\x85c\x1e\0", "/x", None)
    assert read_runs(machine) == [[entry]]


def test_only_we_may_read_it(machine: Machine) -> None:
    Journal(machine).close()
    assert file(machine).stat().st_mode & 0o777 == 0o600
    assert file(machine).parent.stat().st_mode & 0o777 == 0o700


def test_a_span_tells_begin_and_end(machine: Machine) -> None:
    log = Journal(machine)
    with log.span("stage", "unpack it", "web"):
        assert [entry["event"] for entry in lines(machine)] == ["begin"]  # told before it is done
    begin, done = lines(machine)
    assert (begin["phase"], begin["step"], begin["app"]) == ("stage", "unpack it", "web")
    assert (done["event"], done["phase"], done["step"], done["app"]) == ("done", "stage", "unpack it", "web")
    assert done["seconds"] == pytest.approx(done["t"] - begin["t"], abs=0.01)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_span_that_fails_says_why_and_lets_the_failure_go_on(machine: Machine, kind: type[BaseException]) -> None:
    log = Journal(machine)
    with pytest.raises(kind), log.span("stage", "unpack it"):
        raise kind("the disk is full")
    assert [entry["event"] for entry in lines(machine)] == ["begin", "failed"]
    assert lines(machine)[1]["error"] == "the disk is full"
    assert lines(machine)[1]["seconds"] >= 0


def test_threads_never_mix_their_lines(machine: Machine) -> None:
    log = Journal(machine)
    start = threading.Barrier(8)

    def tell(number: int) -> None:
        start.wait()
        for count in range(50):
            log.record("note", thread=number, count=count, text="x" * 2000)

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = lines(machine)
    assert len(entries) == 400
    for number in range(8):
        assert [entry["count"] for entry in entries if entry["thread"] == number] == list(range(50))


# --- what came before --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b'{"run": "old", "event": "beg', b"\0" * 512, b"x", b'{"run": "old", "event": "a"}'])
def test_a_torn_line_spoils_nothing_after_it(machine: Machine, torn: bytes) -> None:
    file(machine).parent.mkdir(parents=True)
    file(machine).write_bytes(b'{"run": "old", "event": "run-begin"}\n' + torn)
    log = Journal(machine)
    log.record("run-begin")
    old, new = read_runs(machine)
    assert old[0] == {"run": "old", "event": "run-begin"}
    assert [entry["event"] for entry in new] == ["run-begin"]
    assert new[0]["run"] == log.run


def test_a_whole_last_line_gets_no_empty_one_after_it(machine: Machine) -> None:
    file(machine).parent.mkdir(parents=True)
    file(machine).write_bytes(b'{"run": "old"}\n')
    Journal(machine).record("run-begin")
    assert file(machine).read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "noise", [b"", b"\n\n", b"null\n", b"[1]\n", b"3\n", b'{"event": "x"}\n', b"\xff\xfe\n", b"{}\n"]
)
def test_lines_that_say_nothing_are_passed_over(machine: Machine, noise: bytes) -> None:
    file(machine).parent.mkdir(parents=True)
    file(machine).write_bytes(b'{"run": "a", "n": 1}\n' + noise + b'{"run": "a", "n": 2}\n')
    assert read_runs(machine) == [[{"run": "a", "n": 1}, {"run": "a", "n": 2}]]


def test_without_a_journal_there_are_no_runs(machine: Machine) -> None:
    assert read_runs(machine) == []


def test_runs_are_told_apart_oldest_first(machine: Machine) -> None:
    file(machine).parent.mkdir(parents=True)
    file(machine).write_bytes(b'{"run": "a", "n": 1}\n{"run": "b", "n": 2}\n{"run": "a", "n": 3}\n')
    assert [[entry["n"] for entry in run] for run in read_runs(machine)] == [[1, 3], [2]]


# --- rotation ----------------------------------------------------------------------------------------------------


def test_a_long_journal_is_set_aside_when_the_next_run_begins(machine: Machine) -> None:
    first = Journal(machine)
    first.record("note", text="x" * journal.ROTATE_BYTES)
    first.record("run-end")  # a run stays in one file
    first.close()
    assert [entry.name for entry in file(machine).parent.iterdir()] == ["journal.jsonl"]
    first_lines = file(machine).read_bytes()

    second = Journal(machine)
    second.run = "second"
    second.record("run-begin")
    assert file(machine).with_name("journal.1.jsonl").read_bytes() == first_lines
    assert [entry["event"] for entry in lines(machine)] == ["run-begin"]
    assert [[entry["event"] for entry in run] for run in read_runs(machine)] == [["note", "run-end"], ["run-begin"]]


def test_only_one_older_journal_is_kept(machine: Machine) -> None:
    for run in ("a", "b", "c"):
        log = Journal(machine)
        log.run = run
        log.record("note", text="x" * journal.ROTATE_BYTES)
        log.close()
    assert sorted(entry.name for entry in file(machine).parent.iterdir()) == ["journal.1.jsonl", "journal.jsonl"]
    assert [run[0]["run"] for run in read_runs(machine)] == ["b", "c"]


def test_a_journal_just_at_the_limit_stays(machine: Machine) -> None:
    file(machine).parent.mkdir(parents=True)
    file(machine).write_bytes(b" " * (journal.ROTATE_BYTES - 1) + b"\n")
    Journal(machine)
    assert not file(machine).with_name("journal.1.jsonl").exists()


# --- clocks ------------------------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_time_and_process(machine: Machine) -> None:
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}-{os.getpid()}", Journal(machine).run)


def test_the_boot_is_named_by_the_kernel() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", journal.boot_id())
    assert journal.boot_id() == journal.boot_id()
    assert journal.uptime() > 0
