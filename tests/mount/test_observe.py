"""Looking into a mount at work: info, stats, profile, metrics, logs, the bundle."""

import json
import os
import re
import signal
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forebay_command import Forebay, wait_until
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from source_tree import MIB, payload

from forebay.cacheruntime.worker.metrics import peer_metrics
from forebay.proto import worker_pb2 as pb

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SECRET = "SKTEST-very-secret"


def _scrape(forebay: Forebay) -> dict[str, list[Any]]:
    address = (forebay.cache_dir / "metrics").read_text()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    families = list(text_string_to_metric_families(text))
    assert families, text
    return {sample.name: [s for f in families for s in f.samples if s.name == sample.name]
            for family in families for sample in family.samples}  # fmt: skip


def _value(found: dict[str, list[Any]], name: str, **labels: str) -> float:
    return sum(s.value for s in found[name] if labels.items() <= s.labels.items())


def _wait_looking(profile: "subprocess.Popen[str]") -> None:
    """Until a `forebay profile` has looked for the first time: then it catches SIGTERM (proc(5), SigCgt)."""

    def looks() -> bool:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{profile.pid}/status").read_text())
        return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGTERM - 1))

    wait_until(looks, "the profile looks")


def test_info_says_what_is_cached_where(forebay: Forebay, folder: Any) -> None:
    folder.put("d/small", payload(1, 5000))
    folder.put("big", payload(2, 3 * MIB + 5))
    mount = forebay.mount(folder.source)
    wait_until(lambda: forebay.dataset(mount)["listing"] == "complete", "listed")
    before = forebay.run("info", mount / "big", "--json").json()
    assert (before["blocks_cached"], before["blocks"], before["size_bytes"]) == (0, 4, 3 * MIB + 5)
    forebay.run("warmup", mount)
    big = forebay.run("info", mount / "big", "--checksums", "--json").json()
    assert (big["blocks_cached"], big["complete"], big["snapshot"]) == (4, True, 1)
    assert big["source"] == f"{folder.source}/big"
    assert big["version"] == os.getxattr(mount / "big", "user.forebay.etag").decode()
    assert Path(big["file"]).read_bytes() == payload(2, 3 * MIB + 5)
    assert len(big["checksums"]["blocks"]) == 4
    small = forebay.run("info", folder.source, "d/small", "--json").json()
    assert (small["blocks_cached"], small["cached_bytes"]) == (1, 5000)
    with open(small["file"], "rb") as pack:
        pack.seek(small["offset"])
        assert pack.read(5000) == payload(1, 5000)
    whole = forebay.run("info", mount, "--json").json()
    assert (whole["files"], whole["cached_files"], whole["cached_bytes"]) == (2, 2, 3 * MIB + 5005)
    assert "4 of 4 blocks" in forebay.run("info", mount / "big").out
    assert "there is no 'gone'" in forebay.run("info", mount / "gone", code=1).err
    assert "never listed" in forebay.run("info", forebay.root / "tmp", code=2).err
    forebay.umount(mount)


def test_stats_and_profile_see_reads(forebay: Forebay, bucket: Any) -> None:
    bucket.put("big", payload(1, 6 * MIB))
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", "cached")
    stats = forebay.start("stats", mount, "--json", "--interval", "0.2")
    profile = forebay.start("profile", mount, "--seconds", "60", "--json")
    assert stats.stdout is not None
    stats.stdout.readline()
    _wait_looking(profile)
    assert (mount / "big").read_bytes() == payload(1, 6 * MIB)
    rows = [json.loads(stats.stdout.readline()) for _ in range(3)]
    while sum(row["store_bytes_s"] * row["seconds"] for row in rows) < 6 * MIB - 1 and len(rows) < 20:
        rows.append(json.loads(stats.stdout.readline()))
    stats.terminate()
    stats.communicate()
    got = sum(row["store_bytes_s"] * row["seconds"] for row in rows)
    assert got == pytest.approx(6 * MIB, rel=0.01)
    assert any(row["wait_p99_s"] for row in rows)
    profile.terminate()
    out, err = profile.communicate(timeout=30)
    assert (profile.returncode, err) == (0, "")
    seen = json.loads(out)
    sources = {row["source"]: row for row in seen["sources"]}
    waits = sum(sources[name]["reads"] for name in ("ahead", "store", "memory"))
    assert waits >= 1
    assert sources["store"]["reads"] >= 1
    assert sources["store"]["p50_s"] <= sources["store"]["p99_s"]
    assert sources["store"]["bytes"] + sources["ahead"]["bytes"] + sources["tier"]["bytes"] == 6 * MIB
    gets = next(row for row in seen["worker"] if row["name"].startswith("GETs"))
    assert gets["bytes"] == 6 * MIB
    assert "waiting for the source" in seen["verdict"]
    forebay.umount(mount)


def test_profile_of_what_has_no_room(forebay: Forebay, bucket: Any) -> None:
    bucket.put("big", payload(1, 6 * MIB))
    tier = f"SSD:{forebay.root / 't'}:1MiB"
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", "cached", "--tier", tier)
    profile = forebay.start("profile", mount, "--seconds", "60", "--json")
    _wait_looking(profile)
    count = forebay.run("stats", mount, "--json", "--count", "1").json()
    assert count["store_bytes_s"] == 0
    assert (mount / "big").read_bytes() == payload(1, 6 * MIB)
    profile.terminate()
    out, _ = profile.communicate(timeout=20)
    sources = {row["source"]: row for row in json.loads(out)["sources"]}
    assert sources["memory"]["reads"] >= 1
    forebay.umount(mount)


@pytest.mark.semantics("W5")
def test_metrics_of_worker_and_mounts(forebay: Forebay, bucket: Any) -> None:
    bucket.put("big", payload(1, 2 * MIB))
    bucket.put("small", payload(2, 3000))
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", "cached", "--metrics", "0")
    assert (mount / "big").read_bytes() == payload(1, 2 * MIB)
    assert (mount / "small").read_bytes() == payload(2, 3000)
    found = _scrape(forebay)
    assert _value(found, "forebay_store_bytes_total") == 2 * MIB + 3000
    assert _value(found, "forebay_tier_used_bytes", medium="SSD") == 2 * MIB + 3000
    assert _value(found, "forebay_dataset_cached_ratio") == 1.0
    assert _value(found, "forebay_mount_read_misses_total", mount=str(mount)) >= 2
    read = _value(found, "forebay_mount_read_hit_bytes_total") + _value(found, "forebay_mount_read_miss_bytes_total")
    assert read == 2 * MIB + 3000
    buckets = [s for s in found["forebay_store_request_duration_seconds_bucket"] if s.labels["le"] == "+Inf"]
    assert sum(s.value for s in buckets) == _value(found, "forebay_store_requests_total")
    for name in found:
        assert name.startswith("forebay_")
        assert re.search(r"_(bytes|seconds|total|ratio|files|info|jobs|normal)(_total|_bucket|_count|_sum)?$", name), (
            f"{name} has no unit"
        )
    text = json.dumps([s.labels for samples in found.values() for s in samples])
    assert SECRET not in text
    # A worker that is killed is followed by one that serves there too.
    address = (forebay.cache_dir / "metrics").read_text()
    os.kill(forebay.pids(mount)["worker"], 9)
    bucket.put("later", b"1")
    forebay.run("sync", mount, *bucket.args)
    assert (forebay.cache_dir / "metrics").read_text() == address
    assert "forebay_worker_info" in _scrape(forebay)
    other = forebay.mount(bucket.source, *bucket.args, "--metrics", "off")
    assert not (forebay.cache_dir / "metrics").exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/metrics", timeout=5)
    assert "is not HOST:PORT" in forebay.run("mount", bucket.source, forebay.root, "--metrics", "x", code=2).err
    busy = bucket.link.url.rpartition(":")[2]
    wrong = forebay.run("mount", bucket.source, forebay.mount_point(), *bucket.args, "--metrics", busy, code=2)
    assert f"cannot listen on 127.0.0.1:{busy}" in wrong.err
    for folder in (other, mount):
        forebay.umount(folder)


def test_the_dashboard_names_only_metrics_that_exist(forebay: Forebay, bucket: Any) -> None:
    bucket.put("f", payload(1, 3000))
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", "cached", "--metrics", "0")
    assert (mount / "f").read_bytes() == payload(1, 3000)
    (mount / "f").read_bytes()
    bucket.put("late", payload(2, 200_000))
    forebay.run("sync", mount)
    bucket.link.hold_after(10_000)
    forebay.run("warmup", mount, "--background")
    found = wait_until(
        lambda: "forebay_job_done_ratio" in (f := _scrape(forebay)) and f, "metrics while a warm-up runs"
    )  # fmt: skip
    board = (ROOT / "deploy/grafana/forebay.json").read_text()
    assert json.loads(board)["title"] == "Forebay"
    named = set(re.findall(r"forebay_[a-z_]+", " ".join(re.findall(r'"(?:expr|query)": "((?:[^"\\]|\\.)*)"', board))))
    assert len(named) > 12
    assert named <= {*found, *_peer_metrics()}, named - set(found)
    bucket.link.release()
    forebay.run("jobs", "1", "--watch")
    forebay.umount(mount)


def _peer_metrics() -> set[str]:
    """Names of those that a worker of a cluster has besides."""
    traffic = pb.TrafficReply(peers=[pb.PeerTraffic(id="w", header_counts=[1])], certificate_left_s=1.0)
    text = generate_latest(SimpleNamespace(collect=lambda: peer_metrics(traffic))).decode()  # type: ignore[arg-type]
    return set(re.findall(r"^(forebay_[a-z_]+)", text, re.MULTILINE))


def test_logs_are_json_when_asked_for(forebay: Forebay, bucket: Any) -> None:
    forebay.environ["FOREBAY_LOG_FORMAT"] = "json"
    bucket.put("f", payload(1, 3000))
    mount = forebay.mount(bucket.source, *bucket.args)
    assert (mount / "f").read_bytes() == payload(1, 3000)
    handler = forebay.pids(mount)["handlers"][0]
    os.kill(handler, 9)
    wait_until(lambda: forebay.pids(mount)["handlers"] not in ([], [handler]), "another handler")
    forebay.umount(mount)
    processes = set()
    for log in forebay.cache_dir.glob("*.log"):
        for line in log.read_text().splitlines():
            processes.add(json.loads(line)["process"])
    assert processes >= {"worker", "supervisor"}
    wrong = forebay.run("mounts", code=2, environ={"FOREBAY_LOG_FORMAT": "xml"})
    assert "FOREBAY_LOG_FORMAT='xml'" in wrong.err


@pytest.mark.semantics("W5")
def test_the_bundle_has_no_secret(forebay: Forebay, bucket: Any) -> None:
    bucket.put("f", b"content-of-a-file")
    mount = forebay.mount(bucket.source, *bucket.args)
    assert (mount / "f").read_bytes() == b"content-of-a-file"
    forebay.run("warmup", mount, "f")
    (forebay.cache_dir / "worker.log").open("a").write(
        f"2026-01-01 INFO planted secret_access_key={SECRET} and https://user:{SECRET}@host/x\n"
        f'{{"token": "{SECRET}", "message": "Authorization: Bearer {SECRET}"}}\n'
    )
    file = forebay.root / "b.tar.gz"
    assert str(file) in forebay.run("debug", "bundle", file).out
    with tarfile.open(file) as archive:
        parts = {m.name.removeprefix("forebay-bundle/"): archive.extractfile(m) for m in archive.getmembers()}
        texts = {name: part.read().decode() for name, part in parts.items() if part is not None}
    assert {"versions.json", "doctor.json", "config.json", "mounts.json", "status.json", "jobs.json"} <= set(texts)
    assert "logs/worker.log" in texts
    assert "kernel/proc/version" in texts
    everything = "\n".join(texts.values())
    assert "planted" in everything
    for secret in (SECRET, "AKTEST", "content-of-a-file"):
        assert secret not in everything, secret
    assert json.loads(texts["mounts.json"])[0]["dir"] == str(mount)
    assert json.loads(texts["jobs.json"])[0]["state"] == "done"
    assert file.stat().st_mode & 0o077 == 0
    assert "does not end in .tar.gz" in forebay.run("debug", "bundle", forebay.root / "b.zip", code=2).err
    missing = forebay.run("debug", "bundle", forebay.root / "no" / "b.tar.gz", code=2)
    assert "cannot be written" in missing.err
    forebay.umount(mount)
