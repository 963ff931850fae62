"""Records of warm-ups."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from forebay.cacheruntime import jobs as jobs_module
from forebay.cacheruntime.errors import CacheFormatError, UsageError
from forebay.cacheruntime.jobs import JobProgress, JobRequest, JobState, JobStore

REQUEST = JobRequest("00" * 8, ("a", "b\udcff"), ("*.jpg",), rate_bytes_s=5, verify=True, deadline_s=1.5)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    record = store.create("s3://b/p", REQUEST, True, 12.5)
    assert (record.id, record.worker) == (1, os.getpid())
    record = replace(record, state=JobState.DONE, progress=JobProgress(files_done=3, listing=False), ended_at=20.0)
    store.put(record)
    assert store.get(1) == record
    assert store.create("s3://b/q", REQUEST, False, 13.0).id == 2
    assert [one.id for one in store.all()] == [1, 2]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "jobs").glob("*.json"))


def test_no_such_job_and_a_damaged_one(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    assert list(store.all()) == []
    with pytest.raises(UsageError, match="no job 7"):
        store.get(7)
    store.create("s3://b/p", REQUEST, True, 1.0)
    (tmp_path / "jobs" / "1.json").write_text("{")
    with pytest.raises(CacheFormatError, match=r"1\.json"):
        store.get(1)
    assert list(store.all()) == []


def test_fields_of_another_version_are_passed_over(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    record = store.create("s3://b/p", REQUEST, True, 1.0)
    path = tmp_path / "jobs" / "1.json"
    path.write_text(path.read_text().replace("{", '{"later": 1, ', 1))
    assert store.get(1) == record


def test_a_running_job_whose_worker_is_gone_is_interrupted(tmp_path: Path) -> None:
    record = JobStore(tmp_path).create("s3://b/p", REQUEST, True, 1.0)
    assert record.seen_by(os.getpid()).state is JobState.RUNNING
    for worker in (None, os.getpid() + 1):
        assert record.seen_by(worker).state is JobState.INTERRUPTED
    assert replace(record, state=JobState.DONE).seen_by(None).state is JobState.DONE


def test_failures_and_a_line_cut_short(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    assert store.failures(1) == []
    store.failures_path(1).write_text('{"path": "a", "error": "gone"}\n{"path": "b", "er')
    assert store.failures(1) == [{"path": "a", "error": "gone"}]


def test_the_oldest_that_have_ended_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_JOBS", 2)
    store = JobStore(tmp_path)
    for number in range(5):
        record = store.create("s3://b/p", REQUEST, True, float(number))
        if number != 1:
            store.put(replace(record, state=JobState.DONE))
        store.failures_path(record.id).write_text("")
    assert [one.id for one in store.all()] == [2, 4, 5], "the second still runs"
    assert {path.name for path in tmp_path.iterdir()} == {
        "last", *(f"{n}.{kind}" for n in (2, 4, 5) for kind in ("json", "request", "failures"))
    }  # fmt: skip
    for path in tmp_path.glob("5.*"):
        path.unlink()
    assert store.create("s3://b/p", REQUEST, True, 9.0).id == 6, "a number names one job for ever"
