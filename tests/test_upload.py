"""`neox upload`: the card says what the run says, and a fake of the Hub gets one commit of all files."""

from __future__ import annotations

import base64
import http.server
import json
import threading

import pytest
from huggingface_hub import ModelCard

from neox.__main__ import main
from neox.checkpoint.store import Store
from neox.config.load import dump, load_config
from tests.checkpoint.pieces import full_tensors, save_at

CONFIG = """
model: {num_layers: 2, hidden_size: 32, num_heads: 4, seq_length: 16, vocab_size: 100}
optim: {lr: 2.0e-3}
train: {steps: 40, global_batch_size: 8, micro_batch_size: 2}
"""


REPORT = {
    "metrics": {"cloze/acc": 0.125, "cloze/acc_stderr": 0.01},
    "versions": {"lm_eval": "0.4.9"},
    "harness": {"n-shot": {"cloze": 2}},
}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """What of the Hub an upload of small files needs; keeps the requests."""

    requests: list[tuple[str, bytes]]
    status = 200

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, body))
        answer = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/me/small"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            answer = {
                "success": True,
                "commitOid": "c0ffee",
                "commitUrl": f"http://{self.headers['Host']}/me/small/commit/c0ffee",
            }
        content = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("Handler", (FakeHub,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def export(tmp_path):
    """An export in its run directory, with everything that a run leaves."""
    run_dir = tmp_path / "small"
    folder = run_dir / "hf" / "step_00000020"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["GPTNeoXForCausalLM"], "vocab_size": 128}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / ".snakemake_timestamp").touch()
    (tmp_path / "base.yaml").write_text(CONFIG)
    tokens = tmp_path / "tokens" / "text"
    tokens.parent.mkdir()
    source = {"file": str(tmp_path / "secret" / "corpus.jsonl"), "sha256": "ab" * 32, "bytes": 2000}
    parts = [{"file": "dealt.jsonl", "sha256": part * 32, "bytes": 700} for part in ("cd", "ef")]
    tokens.with_suffix(".manifest.json").write_text(
        json.dumps({"documents": 7, "tokens": 12345, "inputs": [source, source, *parts]})
    )
    config = load_config([tmp_path / "base.yaml"], [f"data.train_paths=[{tokens},{tokens}]"])
    (run_dir / "config.yaml").write_text(dump(config))
    lines = [{"step": step, "tokens": 128 * step, "loss": 5 - step / 10} for step in range(1, 41)]
    lines[18:18] = [{"step": 18, "valid_loss": 3.25}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "eval").mkdir()
    (run_dir / "eval" / "step_00000020.json").write_text(json.dumps(REPORT))
    save_at(Store(run_dir / "checkpoints"), 20, full_tensors())
    return folder


def test_card_and_files_without_sending(export, tmp_path, capsys, hub):
    assert main(["upload", str(export), "me/small", "--dry-run", "--licence", "apache-2.0"]) == 0
    out = capsys.readouterr().out
    card = ModelCard(out[: out.index("             7")])
    assert (card.data.license, card.data.tags, card.data.model_name) == ("apache-2.0", ["neox-hpc"], "small")
    found = [(score.dataset_name, score.metric_type, score.metric_value) for score in card.data.eval_results]
    assert found == [("cloze", "acc", 0.125)]
    for line in (
        'model = AutoModelForCausalLM.from_pretrained("me/small")',
        "| vocabulary | 100 |",
        "| parameters | 33,664 |",
        "| input and output embeddings | separate |",
        "# small, step 20",
        "| layers × width, heads | 2 × 32, 4 |",
        "| tokens seen | 2,560 |",
        "| token file text | 7 documents, 12,345 tokens |",
        f"| corpus file corpus.jsonl | 2,000 bytes, sha256 {'ab' * 32} |",
        "| corpus file dealt.jsonl | 1,400 bytes, in 2 files or parts of one |",
        "| steps | 20 of 40 |",
        "| 18 | 2,304 | 3.2000 | 3.2500 |",
        "| 20 | 2,560 | 3.0000 |  |",
        "| cloze | 2 | acc | 0.125 | lm-evaluation-harness 0.4.9 |",
        "             7  model.safetensors",
        "not sent to me/small, main: 2 files and README.md, the card above",
    ):
        assert line in out.splitlines()
    assert out.count("corpus.jsonl") == out.count("token file text") == 1
    assert str(tmp_path) not in out and hub.requests == []


@pytest.mark.parametrize(("options", "private"), [([], False), (["--private"], True)])
def test_repository_is_made_as_asked(export, hub, options, private):
    assert main(["upload", str(export), "me/small", *options]) == 0
    (create,) = [json.loads(body) for path, body in hub.requests if path == "/api/repos/create"]
    assert (create.get("private") is True or create.get("visibility") == "private") is private  # by its version
    assert [path for path, _ in hub.requests if "/branch/" in path] == []


def test_one_commit_of_everything(export, capsys, hub):
    assert main(["upload", str(export), "me/small", "--revision", "step20"]) == 0
    assert [path for path, _ in hub.requests if "/branch/" in path] == ["/api/models/me/small/branch/step20"]
    assert capsys.readouterr().out.endswith("/me/small/commit/c0ffee\n")
    (commit,) = [body for path, body in hub.requests if path == "/api/models/me/small/commit/step20"]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert files["model.safetensors"] == b"weights" and b"# small, step 20" in files["README.md"]
    assert b'.from_pretrained("me/small", revision="step20")' in files["README.md"]
    assert b"license" not in files["README.md"]


def test_mistakes_are_one_line(export, tmp_path, capsys, hub):
    hub.status = 401
    for arguments, message in [
        ([str(export), "me/small"], "the Hugging Face Hub, me/small: "),
        ([str(tmp_path), "me/small", "--run-dir", str(export.parent.parent)], "must be a folder step_*"),
        ([str(tmp_path), "me/small"], "does not lie in a run directory"),
        ([str(export), "me/small", "--run-dir", str(tmp_path)], "not a run directory"),
    ]:
        assert main(["upload", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
