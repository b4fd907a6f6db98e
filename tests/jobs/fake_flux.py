"""A fake of `flux` for a PATH, where the real one is not installed; outputs as flux-core 0.88 printed them.

State is a folder, FAKE_FLUX: a JSON file per job. Every broker is this machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STATE = Path(os.environ["FAKE_FLUX"])
DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
FIRST_ID, KILL_TIMEOUT_S = 65867350016, 5


def f58(job_id: int) -> str:
    word = ""
    while job_id:
        job_id, digit = divmod(job_id, 58)
        word = DIGITS[digit] + word
    return f"ƒ{word}"


def options_of(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options by name, and the words after them."""
    options = {}
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0).removeprefix("--").partition("=")
        options[name] = value
    return options, words


def write(job_id: int, **changes: Any) -> dict[str, Any]:
    file = STATE / f"{job_id}.json"
    record: dict[str, Any] = (json.loads(file.read_text()) if file.exists() else {"id": job_id}) | changes
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(record))
    draft.replace(file)
    return record


def batch(words: list[str]) -> int:
    options, (script,) = options_of(words)
    job_id = FIRST_ID + len(list(STATE.glob("*.json")))
    write(job_id, name=options["job-name"], status="SCHED", options=options, script=Path(script).read_text())
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen([sys.executable, __file__, "start", str(job_id)], start_new_session=True, **quiet)  # type: ignore[call-overload]
    print(f58(job_id))
    return 0


def options_of_job(job_id: int) -> dict[str, str]:
    options: dict[str, str] = json.loads((STATE / f"{job_id}.json").read_text())["options"]
    return options


def start(words: list[str]) -> int:
    """The broker: runs a job once the one before it has ended, and ends it when it has had its time."""
    job_id = int(words[0])
    before = STATE / f"{options_of_job(job_id).get('dependency', '').removeprefix('afterany:')}.json"
    while before.exists() and json.loads(before.read_text())["status"] in ("SCHED", "RUN"):
        time.sleep(0.1)
    job = write(job_id, status="RUN")
    options, limit_s = job["options"], 60 * int(job["options"]["time-limit"].rstrip("m"))
    end_at = time.monotonic() + limit_s
    script = STATE / f"{job_id}.script"
    script.write_text(job["script"])
    files = [Path(options[key].replace("{{id.dec}}", str(job_id))) for key in ("output", "error")]
    environ = {**os.environ, "FAKE_FLUX_JOB": str(job_id)}
    with files[0].open("wb") as out, files[1].open("wb") as err:
        process = subprocess.Popen(["/bin/bash", script], env=environ, stdout=out, stderr=err, start_new_session=True)
    write(job_id, pid=process.pid)
    status = {True: "COMPLETED", False: "FAILED"}
    while process.poll() is None:
        if time.monotonic() > end_at:
            status = dict.fromkeys((True, False), "TIMEOUT")
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    if json.loads((STATE / f"{job_id}.json").read_text())["status"] != "CANCELED":
        write(job_id, status=status[process.returncode == 0])
    return 0


def jobs(words: list[str]) -> int:
    options, ids = options_of([word.replace("-a", "--a", 1) if word == "-a" else word for word in words])
    if "format" in options:
        for file in STATE.glob("*.json"):
            record = json.loads(file.read_text())
            print(f"{record['id']}|{record['name']}")
        return 0
    files = {job_id: STATE / f"{job_id}.json" for job_id in ids}
    for job_id in [job_id for job_id, file in files.items() if not file.exists()]:
        print(f"JobID {job_id} unknown", file=sys.stderr)
        del files[job_id]
    known = [json.loads(file.read_text()) for file in files.values()]
    if known:
        print(json.dumps(known[0] if len(ids) == 1 else {"jobs": known}))
    return 0 if known else 1


def cancel(words: list[str]) -> int:
    for job_id in words:
        record = json.loads((STATE / f"{job_id}.json").read_text())
        if record["status"] != "RUN":
            print(f"flux-cancel: ERROR: {f58(int(job_id))}: job is inactive", file=sys.stderr)
            return 1
        write(int(job_id), status="CANCELED", exception={"occurred": True, "type": "cancel", "note": ""})
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(record["pid"], number)
            time.sleep(KILL_TIMEOUT_S)
            try:
                os.killpg(record["pid"], signal.SIGKILL)
            finally:
                os._exit(0)
    return 0


def run(words: list[str]) -> int:
    """All tasks on this machine; templates are filled in, and when one task fails the others go on."""
    options, command = options_of(words)
    job_id = os.environ.get("FAKE_FLUX_JOB", "1")
    nodes, size = int(options["nodes"]), int(options["ntasks"])
    name, _, value = options["env"].partition("=")
    command = [re.sub(r"\{\{id\}\}", f58(int(job_id)), word) for word in command]
    tasks = []
    for rank in range(size):
        place = {"FLUX_TASK_RANK": rank, "FLUX_JOB_SIZE": size, "FLUX_TASK_LOCAL_ID": rank % (size // nodes)}
        environ = {**os.environ, name: value, **{key: str(number) for key, number in place.items()}}
        tasks.append(subprocess.Popen(command, env=environ))
    return max(task.wait() for task in tasks)


def getattr_(words: list[str]) -> int:
    job_id = int(os.environ["FAKE_FLUX_JOB"])
    nodes = int(json.loads((STATE / f"{job_id}.json").read_text())["options"]["nodes"])
    hosts = ",".join([os.uname().nodename] * nodes)
    print({"jobid": f58(job_id), "hostlist": hosts, "parent-uri": "local:///outside"}[words[0]])
    return 0


def job(words: list[str]) -> int:
    number = 0
    for digit in words[-1].lstrip("ƒ"):
        number = number * 58 + DIGITS.index(digit)
    print(number)
    return 0


if __name__ == "__main__":
    verbs = {
        "batch": batch,
        "start": start,
        "jobs": jobs,
        "cancel": cancel,
        "run": run,
        "getattr": getattr_,
        "job": job,
    }
    if (STATE / "down").exists():
        print("flux: ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found", file=sys.stderr)
        sys.exit(1)
    sys.exit(verbs[sys.argv[1]](sys.argv[2:]))
