"""Token files behind an HTTP and an S3 server: the samples of a local file, through a cache that stays small."""

import http.server
import os

import numpy as np
import pytest
from data_inputs import serve
from RangeHTTPServer import RangeRequestHandler

from neox.config.errors import UserError
from neox.data import s3, streamed
from neox.data.indexed import IndexedReader
from neox.data.parts import plan_part
from neox.data.streamed import StreamedReader
from tests.data.test_fetch import Recorder
from tests.data.test_parts import config_of, write_tokens
from tests.object_store import bucket, s3_server  # noqa: F401 (fixtures)

SIZES = [50, 0, 1, 400, 2, 20, 170, 90, 3000, 1]


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(streamed, "BACKOFF_S", 0.0)
    (tmp_path / "served").mkdir()
    write_tokens(tmp_path / "served" / "x", SIZES)
    return tmp_path / "served"


def test_reads_as_a_local_file_does_and_keeps_little(served, tmp_path):
    local = IndexedReader(served / "x")
    with serve(served, Recorder(RangeRequestHandler, drop_after=[10_000] * 3 + [7, 0, 500]).handler) as url:
        reader = StreamedReader(f"{url}/x", tmp_path / "cache", 4000).check()
        places = np.random.default_rng(0).integers(0, len(local.tokens), 500)
        assert np.array_equal(reader.tokens[places], local.tokens[places])
        assert all(np.array_equal(reader[item], local[item]) for item in range(len(local)))
        assert np.array_equal(reader.tokens[-5:], local.tokens[-5:]) and len(reader.tokens) == len(local.tokens)
    reader.tokens._block.cache_clear()
    with pytest.raises(OSError, match=r"bytes \d+ to \d+: no answer .*refused"):
        reader.tokens[:]  # the server is gone
    for name in ("x", "y"):  # neither of which was fetched before
        with pytest.raises(OSError, match=r"no answer .*refused"):
            StreamedReader(f"{url}/{name}", tmp_path / "cache", 4000)
    assert len(blocks_in(tmp_path / "cache")) == 4


def blocks_in(cache):
    return sorted(path for path in cache.rglob("0*") if path.is_file())


def test_cache_is_one_for_all_urls_and_no_need(served, tmp_path):
    cache = tmp_path / "cache"
    write_tokens(served / "y", SIZES)
    with serve(served, Recorder(RangeRequestHandler).handler) as url:
        readers = [StreamedReader(f"{url}/{name}", cache, 4000) for name in ("x", "y")]
        expected = [reader.tokens[:].tolist() for reader in readers]
        assert len(blocks_in(cache)) == 4
        held, *rest = blocks_in(cache)
        held.write_bytes(b"short")
        for path in rest:  # no file can be written under a name that a folder has
            path.unlink()
            path.mkdir()
        for reader in readers:
            reader.tokens._block.cache_clear()
        assert [reader.tokens[:].tolist() for reader in readers] == expected


def test_only_whole_blocks_of_this_version_count_and_what_was_read_last_stays(served, tmp_path):
    cache = tmp_path / "cache"
    with serve(served, Recorder(RangeRequestHandler).handler) as url:
        reader = StreamedReader(f"{url}/x", cache, 4000)
        firsts = np.arange(5) * reader.tokens._per_block
        expected = reader.tokens[firsts[:4]].tolist()
        blocks_in(cache)[2].write_bytes(b"short")
        reader.tokens._block.cache_clear()
        assert reader.tokens[firsts[:4]].tolist() == expected
        reader.tokens._block.cache_clear()
        reader.tokens[firsts[:1]], reader.tokens[firsts[4:]]
        assert [int(path.name) for path in blocks_in(cache)] == [0, 2, 3, 4]
        content = (served / "x.bin").read_bytes()
        (served / "x.bin").write_bytes(bytes(byte ^ 1 for byte in content))
        os.utime(served / "x.bin", (1e9, 1e9))
        again = StreamedReader(f"{url}/x", cache, 4000)
        assert np.array_equal(again.tokens[:], IndexedReader(served / "x").tokens[:])


def test_samples_of_a_run_from_s3(served, tmp_path, bucket):  # noqa: F811
    for suffix in (".bin", ".idx"):
        s3.upload(served / f"x{suffix}", bucket / "data" / f"x{suffix}", 5 << 20)
    with pytest.raises(UserError, match=r"data\.cache_dir is required: s3://models/data/x is not on this machine"):
        plan_part(config_of("data.path=s3://models/data/x"), "train")
    remote = config_of("data.path=s3://models/data/x", f"data.cache_dir={tmp_path / 'cache'}", "data.split=[1,0,0]")
    local = config_of(f"data.path={served / 'x'}", "data.split=[1,0,0]")
    samples = []
    for config in (remote, local):
        plan = plan_part(config, "train")
        plan.make()
        dataset = plan.open()
        samples.append([dataset[item][0].tolist() for item in range(20)])
    assert samples[0] == samples[1]


def test_servers_that_cannot(served, tmp_path):
    with serve(served, Recorder(http.server.SimpleHTTPRequestHandler).handler) as url:
        with pytest.raises(UserError, match="gives no parts of files"):
            StreamedReader(f"{url}/x", tmp_path / "cache", 4000)
        with pytest.raises(UserError, match=r"none\.idx: HTTP status 404"):
            StreamedReader(f"{url}/none", tmp_path / "cache", 4000)
