"""The test's hand in the guest: runs programs it is asked to over a virtio port. No part of the product.

One JSON object per line each way: ``{"id", "argv", "input", "timeout"}`` and ``{"id", "code", "out", "err"}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import time

PORT = "/dev/virtio-ports/hand"
#: Said on the console once programs can be asked for.
HERE = "testbed: the hand is here"


def answer(asked: dict[str, object]) -> dict[str, object]:
    argv, text, seconds = asked["argv"], asked["input"], asked["timeout"]
    assert isinstance(argv, list) and isinstance(text, str) and isinstance(seconds, (int, float))
    try:
        done = subprocess.run(argv, input=text.encode(), capture_output=True, timeout=seconds, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code, out, err = 124, error.stdout or b"", (error.stderr or b"") + b"\ntimed out"
    except OSError as error:
        code, out, err = 127, b"", str(error).encode()
    return {"id": asked["id"], "code": code, "out": out.decode(errors="replace"), "err": err.decode(errors="replace")}


def opened() -> int:
    while True:
        try:
            return os.open(PORT, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # udev is not that far
            time.sleep(0.05)


def main() -> None:
    port = opened()
    with open("/dev/console", "w") as console:  # noqa: PTH123
        console.write(f"{HERE}\n")
    line = b""
    while True:
        found = os.read(port, 65536)
        if not found:  # nobody holds the other end
            time.sleep(0.2)
            continue
        *lines, line = (line + found).split(b"\n")
        for asked in lines:
            reply = json.dumps(answer(json.loads(asked))).encode() + b"\n"
            while reply:
                reply = reply[os.write(port, reply) :]


if __name__ == "__main__":
    main()
