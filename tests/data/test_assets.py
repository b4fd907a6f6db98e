"""What the registry knows, and fetching it: from its sources, their mirrors, listings, and a fake of the Hub."""

import hashlib
import http.server
import json
from pathlib import Path

import pytest
from data_inputs import serve

from neox.__main__ import main
from neox.config.errors import UserError
from neox.config.registry import Asset, HubFolder, assets, expand, find
from neox.data.assets import RECORD, fetch_asset, files_of
from workflow.inputs import corpus_files

CONTENTS = {"00.jsonl": b'{"text": "zero"}\n', "01.jsonl": b'{"text": "one"}\n', "deep er/02.jsonl": b"two\n"}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def url(tmp_path):
    for name, content in CONTENTS.items():
        path = tmp_path / "served" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with serve(tmp_path / "served", Quiet) as url:
        yield url


def asset(**sources):
    return Asset("mine", "corpus", "for the test", **sources)


def held(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_tables_are_sound():
    known = assets()
    assert {"pile", "enwik8", "c4", "books3", "pass"} - set(known) == {"pass"}
    for entry in known.values():
        assert sum(map(bool, (entry.urls, entry.hub, entry.url_list, entry.index))) == 1, entry.name
        assert all(len(mirror) == len(entry.urls) for mirror in entry.mirrors)
        assert set(entry.instead) <= set(known) and bool(entry.gone) <= bool(entry.instead)
        assert all(not known[name].gone for name in entry.instead)
        assert len(set(entry.files)) == len(entry.urls)
        assert all(len(digest) == 64 for digest in entry.sha256.values())
        assert not entry.urls or set(entry.sha256) <= set(entry.files)
    assert len(known["c4"].files) == 1024 and known["pile"].files[-1] == "29.jsonl.zst"
    assert len(known["pythia_deduped"].sha256) == 84 and len(known["pile"].sha256) == 30
    assert known["pile_subset"].sha256.items() <= known["pile"].sha256.items()


def test_patterns():
    assert expand("a{08..10}b{x,y}") == [f"a{number}b{letter}" for number in ("08", "09", "10") for letter in "xy"]


def test_all_files_then_only_what_is_not_right(tmp_path, url, capsys):
    wanted = asset(urls=(f"{url}/data/00.jsonl", f"{url}/data/01.jsonl"), sha256={"00.jsonl": SHA256["00.jsonl"]})
    folder = tmp_path / "out"
    fetch_asset(wanted, folder)
    assert held(folder) == {name: CONTENTS[name] for name in ("00.jsonl", "01.jsonl")}
    record = json.loads((folder / RECORD).read_text())
    assert record["files"]["01.jsonl"]["sha256"] == SHA256["01.jsonl"]
    (folder / "00.jsonl").unlink()
    (tmp_path / "served" / "data" / "01.jsonl").write_bytes(b"another")
    fetch_asset(wanted, folder)  # what is there and as recorded is not asked for
    assert held(folder) == {name: CONTENTS[name] for name in ("00.jsonl", "01.jsonl")}
    (folder / "01.jsonl").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"expected sha256 {SHA256['01.jsonl']}"):
        fetch_asset(wanted, folder)
    with pytest.raises(UserError, match="is the record of mine"):
        fetch_asset(find("enwik8"), folder)


def test_mirrors_in_turn_and_ones_own(tmp_path, url):
    here = (f"{url}/data/00.jsonl",)
    fetch_asset(asset(urls=(f"{url}/none/00.jsonl",), mirrors=((f"{url}/nor/x",), here)), tmp_path / "out")
    assert held(tmp_path / "out") == {"00.jsonl": CONTENTS["00.jsonl"]}
    gone = asset(urls=("http://127.0.0.1:9/00.jsonl",), gone="taken down", instead=("c4",))
    with pytest.raises(UserError, match="mine: taken down; instead: c4; a copy of your own: --mirror URL"):
        fetch_asset(gone, tmp_path / "own")
    with pytest.raises(UserError, match="--mirror: the registry has no list of the files of mine"):
        fetch_asset(asset(hub=HubFolder("some/repo", "dataset")), tmp_path / "own", mirror=url)
    fetch_asset(gone, tmp_path / "own", mirror=f"{url}/data/")
    assert held(tmp_path / "own") == {"00.jsonl": CONTENTS["00.jsonl"]}


def test_listings(tmp_path, url):
    lines = tmp_path / "served" / "urls.txt"
    lines.write_text("".join(f"{url}/data/{name.replace(' ', '%20')}\n" for name in CONTENTS))
    fetch_asset(asset(url_list=f"{url}/urls.txt"), tmp_path / "listed")
    fetch_asset(asset(index=f"{url}/data/"), tmp_path / "linked")  # the pages that Python's own server makes
    lines.write_text("<html>\n<p class='x'>moved https://elsewhere/</p>")
    with pytest.raises(UserError, match="the publisher's list of files has '<html>', which is no URL"):
        files_of(asset(url_list=f"{url}/urls.txt"))
    assert held(tmp_path / "listed") == held(tmp_path / "linked") == CONTENTS


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", RECORD])
def test_listed_names_that_would_land_elsewhere(tmp_path, monkeypatch, name):
    with serve(tmp_path, fake_hub({name: b"x"})) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(UserError, match="lists a file that would land elsewhere"):
            files_of(asset(hub=HubFolder("some/repo", "dataset")))


def fake_hub(files, revision="main"):
    """A fake of what the Hub answers: the listing of a repository, and its files."""

    class Handler(Quiet):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/datasets/some/repo/tree/{revision}"):
                lfs = {"pointerSize": 1}
                body = json.dumps(
                    [
                        {
                            **{"type": "file", "path": name, "size": len(content), "oid": "0" * 40},
                            "lfs": {**lfs, "oid": hashlib.sha256(content).hexdigest(), "size": len(content)},
                        }
                        for name, content in files.items()
                    ]
                ).encode()
            elif path.removeprefix(f"/datasets/some/repo/resolve/{revision}/") in files:
                body = files[path.removeprefix(f"/datasets/some/repo/resolve/{revision}/")]
            else:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

    return Handler


def test_hub_folder(tmp_path, monkeypatch):
    content = {"sample/a.parquet": b"abc", "sample/b/c.parquet": b"def"}
    with serve(tmp_path, fake_hub(content)) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        fetch_asset(asset(hub=HubFolder("some/repo", "dataset", "sample")), tmp_path / "out")
        for endpoint in (url, "http://127.0.0.1:9"):  # refused, and nobody there
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            with pytest.raises(UserError, match="the Hugging Face Hub, no/repo: ") as caught:
                files_of(asset(hub=HubFolder("no/repo", "dataset")))
            assert "\n" not in str(caught.value)
        monkeypatch.setenv("HF_ENDPOINT", url)
        published = asset(hub=HubFolder("some/repo", "dataset", "sample"), sha256={"a.parquet": "0" * 64})
        with pytest.raises(UserError, match="on the Hub, and was published with 0000"):
            files_of(published)
    assert held(tmp_path / "out") == {"a.parquet": b"abc", "b/c.parquet": b"def"}


def test_revisions_of_the_hub(tmp_path, monkeypatch):
    early = find("pythia_70m@step3000")
    assert (early.name, early.hub.revision) == ("pythia_70m@step3000", "step3000") and find(
        "pythia_70m"
    ).hub.revision is None
    with pytest.raises(UserError, match="enwik8@main: only what is in a repository of the Hugging Face Hub"):
        find("enwik8@main")
    with pytest.raises(UserError, match="pythia_70@step1: no asset of that name; did you mean pythia_70m"):
        find("pythia_70@step1")
    with serve(tmp_path, fake_hub({"a.bin": b"early"}, "step3000")) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        fetch_asset(asset(hub=HubFolder("some/repo", "dataset", revision="step3000")), tmp_path / "out")
    assert held(tmp_path / "out") == {"a.bin": b"early"}


def test_command(tmp_path, url, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "fetch", "--list"]) == 0
    assert "books3" in capsys.readouterr().out
    assert main(["data", "fetch", "enwik", "--output", "x"]) == 2
    assert "no asset of that name; did you mean enwik8" in capsys.readouterr().err
    Path("pile_subset").mkdir()  # hides no name
    assert main(["data", "fetch", "pile_subset", "--mirror", f"{url}/data"]) == 2
    assert "00.jsonl.zst: HTTP status 404" in capsys.readouterr().err
    assert main(["data", "fetch", f"{url}/data/00.jsonl"]) == 0
    assert Path("00.jsonl").read_bytes() == CONTENTS["00.jsonl"]
    assert main(["data", "fetch", "00.jsonl", "--output", "copy.jsonl"]) == 0
    assert Path("copy.jsonl").read_bytes() == CONTENTS["00.jsonl"]
    assert main(["data", "fetch", "00.jsonl", "--extract", "folder"]) == 2
    assert "not an archive by its name" in capsys.readouterr().err
    for wrong, message in [
        (["c4", "--extract", "new"], "--extract: c4 has 1024 files"),
        (["enwik8", "--extract", "pile_subset"], "--extract pile_subset: is there already"),
        (["enwik8", "--extract", "new", "--max-ratio", "0"], "--max-ratio 0: must be at least 1"),
    ]:
        assert main(["data", "fetch", *wrong]) == 2
        assert message in capsys.readouterr().err and not Path("data/enwik8").exists()


def test_names_in_the_workflow(tmp_path):
    assert corpus_files({"name": "enwik8"}, "results/x") == ("results/x/corpus/enwik8.zip",)
    assert corpus_files({"url": "s3://bucket/a/b.jsonl.zst"}, "results/x") == ("results/x/corpus/b.jsonl.zst",)
    for name, message in [("pile", "taken it down"), ("fineweb_10bt", "only a corpus whose files"), ("c5", "mean c4")]:
        with pytest.raises(UserError, match=message):
            corpus_files({"name": name}, "results/x")
