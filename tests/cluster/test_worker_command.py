"""`forebay worker`: the foreground command that keeps a worker running."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import free_ports, until

from forebay.cacheruntime.client import TRIES, WorkerClient, start_worker, worker_pid
from forebay.cacheruntime.config import GIB, CacheConfig, ClusterConfig, Medium, TierConfig
from forebay.cacheruntime.errors import WorkerUnavailable
from forebay.cacheruntime.mounts import start_time

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(tmp_path / "c", (TierConfig(Medium.SSD, tmp_path / "t", GIB),), tmp_path / "r")


@pytest.fixture
def start(tmp_path: Path, config: CacheConfig) -> Iterator[Start]:
    """Start the command, with more arguments, and wait until it has said its first line."""
    (port,) = free_ports(1)
    started: list[subprocess.Popen[str]] = []
    environ = os.environ | {
        "FOREBAY_CACHE_DIR": str(config.cache_dir), "FOREBAY_RUNTIME_DIR": str(config.runtime_dir),
        "FOREBAY_STATE_DIR": str(tmp_path / "s"), "FOREBAY_SECRETS_DIR": str(tmp_path / "s"),
    }  # fmt: skip

    def begin(*more: str, listen: int = port) -> subprocess.Popen[str]:
        tier = () if "--tier" in more else ("--tier", str(config.tiers[0]))
        arguments = ["worker", "--insecure", "--listen", str(listen), *tier, *more]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "forebay.cli.main", *arguments],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
            )
        )  # fmt: skip
        assert started[-1].stdout is not None
        started[-1].stdout.readline()
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    pid = worker_pid(config)
    if pid is not None:
        end_worker(pid)


def end_worker(pid: int) -> None:
    born = start_time(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: start_time(pid) != born)


def test_a_worker_that_is_killed_is_started_again_and_sigterm_ends_both(start: Start, config: CacheConfig) -> None:
    keeper = start()
    first = worker_pid(config)
    assert first is not None
    end_worker(first)
    until(lambda: worker_pid(config) not in (None, first))
    until(lambda: not Path(f"/proc/{first}").exists())  # and it was waited for
    keeper.send_signal(signal.SIGTERM)
    _, errors = keeper.communicate(timeout=30)
    assert (keeper.returncode, worker_pid(config)) == (0, None)
    assert "another is started" in errors


def test_a_second_one_for_the_same_folder_is_refused_and_one_after_a_kill_takes_over(
    start: Start, config: CacheConfig
) -> None:
    keeper = start()
    pid = worker_pid(config)
    second = start()
    _, errors = second.communicate(timeout=30)
    assert second.returncode != 0
    assert f"runs already for {config.cache_dir} (process {keeper.pid})" in errors
    keeper.kill()
    keeper.wait()
    assert worker_pid(config) == pid
    third = start()
    assert worker_pid(config) == pid
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=30)
    assert (third.returncode, worker_pid(config)) == (0, None)


def test_a_port_in_use_is_one_line(start: Start, config: CacheConfig) -> None:
    keeper = start()
    port = int(keeper.args[6])  # type: ignore[index]
    other = start("--cache-dir", str(config.cache_dir.parent / "other"), "--tier",
                  f"SSD:{config.cache_dir.parent}/other-tier:1GiB", listen=port)  # fmt: skip
    _, errors = other.communicate(timeout=30)
    assert other.returncode != 0
    assert str(port) in errors
    assert len(errors.strip().splitlines()) == 1, errors
    failed = replace(config, cache_dir=config.cache_dir.parent / "other")
    assert worker_pid(failed) is None
    assert failed.remembered_cluster() is None  # mounts of that folder would find no worker that can start


def test_a_worker_that_a_mount_has_started_serves_the_cluster_as_the_folder_was_told_last(
    start: Start, config: CacheConfig
) -> None:
    start()
    pid = worker_pid(config)
    assert pid is not None
    cluster = config.remembered_cluster()
    assert cluster is not None
    old = replace(config, cluster=ClusterConfig(listen="127.0.0.1:1", peers="static:127.0.0.1:1"))
    client = WorkerClient(old, cluster_of_folder=True)
    end_worker(pid)
    client.connect()
    client.close()
    assert config.remembered_cluster() == cluster


def test_a_worker_with_other_settings_is_named(start: Start, config: CacheConfig) -> None:
    start_worker(config)
    pid = worker_pid(config)
    client = WorkerClient(config)
    client.connect()
    keeper = start()
    _, errors = keeper.communicate(timeout=30)
    client.close()
    assert keeper.returncode != 0
    assert f"process {pid}" in errors


@pytest.mark.parametrize(("kills", "serves"), [(2, True), (100, False)])
def test_a_worker_that_is_killed_while_it_starts_is_started_again(
    config: CacheConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, serves: bool
) -> None:
    killed = tmp_path / "killed"
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho >> {killed}\ntest $(wc -l < {killed}) -gt {kills} || kill -9 $$\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if serves:
        start_worker(config)
        pid = worker_pid(config)
        assert pid is not None
        end_worker(pid)
    else:
        with pytest.raises(WorkerUnavailable, match=r"signal 9 \(Killed\) has ended it, 4 times; is memory short\?"):
            start_worker(config)
    assert len(killed.read_text().splitlines()) == (kills + 1 if serves else TRIES)
