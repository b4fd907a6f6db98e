"""A fake LSF with jsrun, for a PATH of copies of this file named after its commands. No LSF can be had to test against.

Outputs, exit codes and signals follow IBM's LSF 10.1 reference and OLCF's Summit guide. State is a folder, FAKE_LSF: a
JSON file per job, and per element of an array; a file `down` makes every command fail; a file `clock` holds the minutes
that have passed, so that tests wait for no walltime; bkill waits FAKE_LSF_INTERVAL_S between its signals. Every host is
this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STATE = Path(os.environ["FAKE_LSF"])
INTERVAL_S = float(os.environ.get("FAKE_LSF_INTERVAL_S", "10"))
FLAGS = ("-r", "-rn", "-a", "-json", "-noheader")
FIRST_ID = 26238


def options_of(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options by name, and the words after them."""
    options = {}
    while words and words[0].startswith("-"):
        name = words.pop(0)
        options[name] = "" if name in FLAGS else words.pop(0)
    return options, words


def read(job_id: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((STATE / f"{job_id}.json").read_text())
    return record


def write(job_id: str, **changes: Any) -> None:
    file = STATE / f"{job_id}.json"
    record = (json.loads(file.read_text()) if file.exists() else {"JOBID": job_id}) | changes
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(record))
    draft.replace(file)


def clock() -> int:
    return int((STATE / "clock").read_text() or 0) if (STATE / "clock").exists() else 0


def bsub(words: list[str]) -> int:
    options, command = options_of(words)
    job_id = str(FIRST_ID + len({file.stem.partition("[")[0] for file in STATE.glob("*.json")}))
    with (STATE / "submitted").open("a") as file:
        file.write(json.dumps({"id": job_id, "options": options, "command": command}) + "\n")
    # A shell, which itself survives the signals of LSB_TRAPSIGS, gets the first word as it is and the others quoted.
    line = " ".join([command[0], *map(shlex.quote, command[1:])])
    line = f"trap '#' 15 10 12 2 1\n{line}\nexit $?"
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    size = re.search(r"\[1-(\d+)\]$", options["-J"])
    for each in [f"{job_id}[{index}]" for index in range(1, int(size[1]) + 1)] if size else [job_id]:
        write(each, STAT="PEND", EXIT_REASON="", EXIT_CODE="", options=options)
        runner = [sys.executable, __file__, "run", each, line]
        subprocess.Popen(runner, start_new_session=True, **quiet)  # type: ignore[call-overload]
    print(f"Job <{job_id}> is submitted to queue <{options.get('-q', 'batch')}>.")
    return 0


def run(words: list[str]) -> int:
    """sbatchd: runs a job, warns it, and runs it again when brequeue has asked for it."""
    job_id, line = words
    options = read(job_id)["options"]
    number, _, index = job_id.strip("]").partition("[")
    place = {"LSB_JOBID": number, "LSB_JOBINDEX": index or "0"}
    environ = {**os.environ, **place, "LSB_MCPU_HOSTS": f"batch1 1 {os.uname().nodename} 42"}
    while True:
        warned_at = clock() + int(options["-W"]) - int(options["-wt"])
        files = [Path(options[name].replace("%J", number).replace("%I", index)) for name in ("-o", "-e")]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        with files[0].open("ab") as out, files[1].open("ab") as err:
            job = subprocess.Popen(["/bin/sh", "-c", line], env=environ, stdout=out, stderr=err, start_new_session=True)
        write(job_id, STAT="RUN", pid=job.pid, EXIT_REASON="")
        while job.poll() is None and clock() < warned_at:
            time.sleep(0.1)
        if job.poll() is None:
            os.killpg(job.pid, signal.Signals[f"SIG{options['-wa']}"])
        job.wait()
        if not read(job_id).get("requeue"):
            code = str(job.returncode) if job.returncode > 0 else ""
            write(job_id, STAT="EXIT" if job.returncode else "DONE", EXIT_CODE=code)
            return 0
        write(job_id, STAT="PEND", requeue=False)


def bjobs(words: list[str]) -> int:
    options, _ = options_of(words)
    records = [json.loads(file.read_text()) for file in sorted(STATE.glob("*.json"))]
    for record in records:
        record["JOBID"], _, index = record["JOBID"].strip("]").partition("[")
        record["JOBINDEX"], record["PEND_REASON"], record["JOB_NAME"] = index or "0", "", record["options"]["-J"]
    names = [word.upper() for word in options["-o"].split() if "=" not in word]
    rows = [{name: record[name] for name in names} for record in records]
    if "-json" in options:
        print(json.dumps({"COMMAND": "bjobs", "JOBS": len(rows), "RECORDS": rows}, indent=2))
    elif rows:
        print("\n".join("|".join(value or "-" for value in row.values()) for row in rows))
    else:
        print("No job found", file=sys.stderr)
    return 0 if rows else 255  # as with LSB_BJOBS_CONSISTENT_EXIT_CODE=Y


def bkill(words: list[str]) -> int:
    for job_id in words:
        if not (STATE / f"{job_id}.json").exists():
            print(f"Job <{job_id}>: No matching job found", file=sys.stderr)
            return 255
        write(job_id, EXIT_REASON="TERM_OWNER: job killed by owner")
        end(job_id)
        print(f"Job <{job_id}> is being terminated")
    return 0


def brequeue(words: list[str]) -> int:
    write(words[0], requeue=True)
    print(f"Job <{words[0]}> is being requeued", flush=True)
    end(words[0])
    return 0


def end(job_id: str) -> None:
    """INT, TERM and KILL to the job, from a process of its own: the caller may be inside the job."""
    if os.fork():
        return
    os.setsid()
    pid = read(job_id)["pid"]  # a job that is run again has another, and is not ended again
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for process in members(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        deadline_s = time.monotonic() + INTERVAL_S
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
    os._exit(0)


def members(pid: int) -> list[int]:
    """A job's processes: LSF signals all of them, whatever sessions they have made."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid] if pid in parents else []
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def jsrun(words: list[str]) -> int:
    """All tasks on this machine; when one fails, the others go on: the guide promises nothing else."""
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    command = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
    num_sets, num_tasks = int(options["nrs"]), int(options["tasks_per_rs"])
    tasks = []
    for rank in range(num_sets * num_tasks):
        place = {"RANK": rank, "SIZE": num_sets * num_tasks, "LOCAL_RANK": rank % num_tasks, "LOCAL_SIZE": num_tasks}
        environ = {**os.environ, **{f"OMPI_COMM_WORLD_{key}": str(value) for key, value in place.items()}}
        tasks.append(subprocess.Popen(command, env=environ))
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:] if sys.argv[1:2] == ["run"] else [Path(sys.argv[0]).name, *sys.argv[1:]]
    if (STATE / "down").exists():
        print("Failed in an LSF library call: LIM is down; try later", file=sys.stderr)
        sys.exit(255)
    verbs = {"bsub": bsub, "bjobs": bjobs, "bkill": bkill, "brequeue": brequeue, "run": run, "jsrun": jsrun}
    sys.exit(verbs[verb](arguments))
