"""`neox data` from the command line, stage after stage."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_inputs import make_texts, write_jsonl

from neox.__main__ import main
from neox.data.indexed import IndexedReader


@pytest.fixture(autouse=True)
def restore_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def neox_data(*arguments):
    return main(["data", *map(str, arguments)])


def test_stages(tmp_path, capsys):
    text = write_jsonl(tmp_path / "a.jsonl", make_texts(60))
    fetched, tokenizer = tmp_path / "b.jsonl", tmp_path / "tokenizer.json"
    assert neox_data("fetch", text.as_uri(), "--output", fetched, "--size", text.stat().st_size) == 0
    assert neox_data("train-tokenizer", fetched, "--vocab-size", 300, "--output", tokenizer) == 0
    for i in range(2):
        shard = ("--shard", f"{i}/2", "--output", tmp_path / f"s{i}")
        assert neox_data("tokenize", fetched, "--tokenizer", tokenizer, *shard) == 0
    assert neox_data("merge", tmp_path / "s0", tmp_path / "s1", "--output", tmp_path / "all") == 0
    heldout = ("--tokenizer", tokenizer, "--split", "8,1,1", "--output", tmp_path / "held")
    assert neox_data("heldout", tmp_path / "all", *heldout) == 0
    assert len(IndexedReader(tmp_path / "all")) == 60
    said = capsys.readouterr().out
    assert "60 documents" in said and "too little held-out prose for cloze.jsonl" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize", "none.jsonl", "--tokenizer", "TOKENIZER", "--output", "x"], "none.jsonl: No such file"),
        (["tokenize", "a", "--tokenizer", "none.json", "--output", "x"], "none.json: No such file"),
        (["tokenize", "a", "--tokenizer", "TOKENIZER", "--output", "x", "--shard", "2/2"], "I from 0 to N-1"),
        (["tokenize", "a", "--tokenizer", "TOKENIZER", "--output", "x", "--workers", "0"], "--workers 0"),
        (["fetch", "file:///x", "--output", "x", "--sha256", "12"], "64 hexadecimal digits"),
        (["merge", "none", "--output", "x"], "none.idx: no such file"),
        (["corpus", "--output", "/proc/x/corpus.jsonl"], "cannot make the folder /proc/x"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, tokenizer_file, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(tokenizer_file) if argument == "TOKENIZER" else argument for argument in arguments]
    assert neox_data(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("neox: error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_leave_no_file_and_no_worker(tmp_path, tokenizer_file, number):
    path = write_jsonl(tmp_path / "in.jsonl", make_texts(200_000))
    command = [sys.executable, "-m", "neox", "data", "tokenize", path, "--workers", "2"]
    command += ["--tokenizer", tokenizer_file, "--output", tmp_path / "out" / "x"]
    process, workers = started(command, tmp_path / "out")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal sends it
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert number == signal.SIGKILL or (list((tmp_path / "out").iterdir()) == [] and said == "")
    begin = time.monotonic()
    while any(map(is_alive, workers)):
        assert time.monotonic() < begin + 30
        time.sleep(0.05)


def test_a_killed_worker_is_one_line_and_leaves_nothing(tmp_path, tokenizer_file):
    path = write_jsonl(tmp_path / "in.jsonl", make_texts(200_000))
    command = [sys.executable, "-m", "neox", "data", "tokenize", path, "--workers", "2"]
    process, workers = started(
        [*command, "--tokenizer", tokenizer_file, "--output", tmp_path / "out" / "x"], tmp_path / "out"
    )
    os.kill(int(workers[1]), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and said.count("\n") == 1
    assert "neox: error: one of --workers was killed, perhaps because memory ran out" in said
    assert list((tmp_path / "out").iterdir()) == [] and not is_alive(workers[0])


def started(command, folder):
    """The process, in a session of its own, and its two workers, once there is a file in the folder."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(folder.glob("*.tmp")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    return process, workers


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ranks_of_mpi_write_what_one_process_does(tmp_path, tokenizer_file):
    """Open MPI's own mpirun, workers that are not forked; a wrong record is one line of one rank, and ends all."""
    text = write_jsonl(tmp_path / "a.jsonl", make_texts(60))
    command = [sys.executable, "-m", "neox", "data", "tokenize", text, "--tokenizer", tokenizer_file]
    assert neox_data(*command[4:], "--output", tmp_path / "one") == 0
    launch = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", "3", *command, "--mpi"]
    env = os.environ | {"MPI4PY_MPIABI": "openmpi"}  # `jobs launch` sets it where there are several
    subprocess.run([*launch, "--workers", "2", "--output", tmp_path / "all" / "x"], check=True, timeout=120, env=env)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["x.bin", "x.idx", "x.manifest.json"]
    for end in ("bin", "idx"):
        assert (tmp_path / "all" / f"x.{end}").read_bytes() == (tmp_path / f"one.{end}").read_bytes()
    text.write_bytes(text.read_bytes() + b"{}\n")
    done = subprocess.run(
        [*launch, "--output", tmp_path / "y" / "x"], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 2 and list((tmp_path / "y").iterdir()) == []
    assert done.stderr.count("neox: error:") == 1 and "a.jsonl, line 61: no key 'text'" in done.stderr


GO_ON = """
import sys
from pathlib import Path
from neox.data import mpi
from neox.data.encoder import Encoding

def kill(*arguments):
    sys.exit(9)

text, tokenizer, output = map(Path, sys.argv[1:])
merge, tokenize = mpi.merge_prefixes, mpi.tokenize
mpi.merge_prefixes = kill
try:
    mpi.tokenize_by_ranks([text], Encoding(tokenizer), output, 1)
except SystemExit:
    mpi.merge_prefixes, mpi.tokenize = merge, kill
assert mpi.tokenize_by_ranks([text], Encoding(tokenizer), output, 1)["documents"] == 60
text.write_bytes(text.read_bytes() * 2)
mpi.tokenize = tokenize
assert mpi.tokenize_by_ranks([text], Encoding(tokenizer), output, 1)["documents"] == 120
"""


def test_a_killed_job_of_mpi_goes_on_with_its_finished_shards(tmp_path, tokenizer_file):
    text = write_jsonl(tmp_path / "a.jsonl", make_texts(60))
    (tmp_path / "all").mkdir()
    key, another = "0123456789abcdef", ".xx.0123456789abcdef.0-of-2.bin"
    for name in (f".x.{key}.1-of-3.bin", f".x.{key}.1-of-3.manifest.json", f"..x.{key}.0-of-3.idx.12ab.tmp", another):
        (tmp_path / "all" / name).touch()
    command = [sys.executable, "-c", GO_ON, text, tokenizer_file, tmp_path / "all" / "x"]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"MPI4PY_MPIABI": "openmpi"})
    left = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert left == [another, "x.bin", "x.idx", "x.manifest.json"]
