"""Who is told how a run ended: the status file, the metrics, the instance's tags, and status with the last words."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bootagent.sandbox.cloud import Cloud
from tests.conftest import Agent
from tests.host.stage import App, Stage

TELL = '[tell]\ntags = true\nmetrics = "/var/lib/node/bootagent.prom"\n'
LAST_WORDS = "no database for you"
BROKEN = f"print({LAST_WORDS!r}, flush=True)\nraise SystemExit(1)\n"


def tags(cloud: Cloud) -> dict[str, str]:
    """The instance's, as EC2 has them, without those it was launched with."""
    found = cloud.api.ec2(cloud.region).describe_tags(
        Filters=[{"Name": "resource-id", "Values": [cloud.instance.instance_id]}]
    )["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found if tag["Key"].startswith("bootagent:")}


def metrics(root: Path) -> dict[str, float]:
    """The samples of the metrics file, each with the value of its last label."""
    text = (root / "var/lib/node/bootagent.prom").read_text()
    return {
        " ".join([sample.name.removeprefix("bootagent_"), *list(sample.labels.values())[:2]]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def status_file(root: Path) -> Any:
    return json.loads((root / "run/bootagent-status.json").read_text())


def tagged(cloud: Cloud) -> int:
    """How often the tags were set since the calls were last forgotten."""
    assert {call.action for call in cloud.calls if call.service == "ec2"} <= {"CreateTags"}
    return len([call for call in cloud.calls if call.service == "ec2"])


def test_everybody_is_told_of_a_good_run_a_failed_one_and_a_stop(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    stage.configure(web.config(), TELL)
    web.publish("one")
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    one = web.current
    assert tags(cloud) == {"bootagent:release": f"web={one}", "bootagent:state": "done"}
    assert tagged(cloud) == 1
    assert status_file(stage.root)["apps"]["web"]["release"] == one
    found = metrics(stage.root)
    assert (found["last_run_exit_code"], found[f"app_release_info web {one}"], found["last_run_outcome done"]) == (
        0,
        1,
        1,
    )
    assert found["last_run_phase_duration_seconds serve"] > 0.3, "it had to be up for that long"

    cloud.api.forget_calls()
    assert agent("reconfigure").code == 0
    assert tagged(cloud) == 0, "nothing has changed"
    found = metrics(stage.root)

    path = stage.root / "var/lib/node/bootagent.prom"
    os.utime(path, (0, 0))
    began = time.time()
    assert agent("run", "--once", "--because", "watch").code == 0
    assert path.stat().st_mtime > 0
    assert metrics(stage.root)["last_look_timestamp_seconds"] > began - 1
    assert metrics(stage.root)["last_run_timestamp_seconds"] == found["last_run_timestamp_seconds"]

    web.publish("two", {**web.tree("two"), "server.py": BROKEN})
    ran = agent("reconfigure")
    assert ran.code == 3
    assert tags(cloud) == {"bootagent:release": f"web={one}", "bootagent:state": "degraded"}
    told = status_file(stage.root)
    assert (told["outcome"], told["exit_code"], told["apps"]["web"]["release"]) == ("degraded", 3, one)
    (failure,) = told["failures"]
    assert (failure["app"], failure["phase"]) == ("web", "serve")
    assert "web.server is not healthy" in failure["sentence"]
    assert failure["step"].startswith("start and verify the services of web")
    assert LAST_WORDS not in json.dumps(told), "its log is nobody else's"
    found = metrics(stage.root)
    assert (found["app_exit_code web"], found[f"app_release_info web {one}"]) == (3, 1)

    said = agent("status")
    assert said.code == 3
    assert "failed in serve, web; step: start and verify" in said.stdout and f"    | {LAST_WORDS}" in _plain(
        said.stdout
    )
    (failure,) = json.loads(agent("status", "--json").stdout)["last_run"]["failures"]
    assert LAST_WORDS in failure["tail"]
    last = json.loads(agent("history", "--json").stdout)[-1]
    assert [(one["phase"], LAST_WORDS in one["tail"]) for one in last["failures"]] == [("serve", True)]

    cloud.api.forget_calls()
    assert agent("stop").code == 0
    assert tagged(cloud) == 1
    assert tags(cloud)["bootagent:state"] == "stopped"
    assert status_file(stage.root)["outcome"] == "stopped"
    assert metrics(stage.root)["last_run_outcome stopped"] == 1


def _plain(text: str) -> str:
    """Without the times that svlogd puts before the lines."""
    return "\n".join(
        line if "    | " not in line else f"    | {line.rpartition(' | ')[2].partition(' ')[2]}"
        for line in text.splitlines()
    )


def test_tags_that_are_refused_are_a_note_and_no_failure(stage: Stage, web: App, agent: Agent, cloud: Cloud) -> None:
    stage.configure(web.config(), TELL)
    web.publish("one")
    cloud.api.fail("ec2", "CreateTags", code="UnauthorizedOperation", status=403, times=99)
    ran = agent("reconfigure")
    assert ran.code == 0, ran.stderr
    assert ran.stderr.count("tags are not up to date") == 1
    assert "allow ec2:CreateTags to the instance's role" in ran.stderr
    ran = agent("stop")
    assert ran.code == 0 and "tags are not up to date" in ran.stderr


def test_an_image_of_another_instance_tags_nobody_before_it_knows_who_it_is(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    stage.configure(web.config(), TELL)
    web.publish("one")
    assert agent("reconfigure").code == 0
    path = stage.root / "var/lib/bootagent/state.json"
    state = json.loads(path.read_text())
    state["told"]["boot_id"] = "the boot of another instance"
    path.write_text(json.dumps({**state, "instance_id": "i-0fffffffffffffff0"}))
    cloud.api.forget_calls()
    assert agent("stop").code == 0
    assert tagged(cloud) == 0
    assert agent("reconfigure").code == 0
    assert tagged(cloud) == 1, "what the other one was tagged with says nothing of this one"


def test_what_failed_in_a_call_to_aws_is_told_with_its_code_and_what_it_needs(
    stage: Stage, web: App, agent: Agent, cloud: Cloud
) -> None:
    stage.configure(web.config(), TELL.replace("tags = true\n", ""))
    cloud.api.fail("s3", "GetObject", code="AccessDenied", status=403, times=99)
    ran = agent("reconfigure", "--json", "--log", "text")
    assert ran.code == 1
    (failure,) = status_file(stage.root)["failures"]
    assert (failure["phase"], failure["code"], failure["iam_action"]) == ("read", "AccessDenied", "s3:GetObject")
    assert failure["request_id"]
    assert json.loads(ran.stdout)["endings"]["web"]["failure"]["code"] == "AccessDenied"
    assert "failed in read, web; code: AccessDenied; request: " in agent("status").stdout
    assert metrics(stage.root)["last_run_outcome failed"] == 1

    # A configuration that says nothing of it any more: what was kept up is still right, or gone.
    (stage.root / "etc/bootagent/config.toml").write_text("[apps]\n")
    assert agent("reconfigure").code == 2
    assert metrics(stage.root)["last_run_exit_code"] == 2
    stage.configure(web.config())
    assert agent("reconfigure").code == 1
    assert not list((stage.root / "var/lib/node").iterdir())
    assert {call.service for call in cloud.calls} == {"s3"}
