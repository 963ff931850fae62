"""The command `forebay simulate`, as it is typed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay

pytestmark = pytest.mark.slow


def cells(found: Any) -> dict[tuple[str, float], Any]:
    return {(cell["policy"], cell["cache_ratio"]): cell for cell in found["cells"]}


def test_a_distribution(shared_forebay: Forebay) -> None:
    found = shared_forebay.run("simulate", "2000x100KiB", "--cache", "25%,50%", "--json").json()
    assert (found["files"], found["bytes"], found["accesses"]) == (2000, 2000 * 102400, 8000)
    table = cells(found)
    assert len(table) == 8
    for fraction in (0.25, 0.5):
        assert table["epoch", fraction]["hit_ratio"] == fraction
        assert table["next-use", fraction]["hit_ratio"] == pytest.approx(fraction, abs=0.002)
        assert table["lru", fraction]["hit_ratio"] < table["sieve", fraction]["hit_ratio"] < fraction
        assert table["epoch", fraction]["fetched"] == 3 * 2000 * 102400 * (1 - fraction)


def test_the_same_as_a_table(shared_forebay: Forebay) -> None:
    done = shared_forebay.run("simulate", "2000x100KiB", "--cache", "50%", "--policy", "epoch", "--policy", "lru")
    first, _, *rows = done.out.splitlines()
    expected = "2,000 files, 195.3 MiB, read in 4 shuffled epochs; the first one is not counted; 1 job"
    assert (first, done.err) == (expected, "")
    assert [row.split()[:6] for row in rows[:1]] == [["50%", "97.7", "MiB", "epoch", "50.0%", "50.0%"]]
    assert rows[1].split()[0] == "lru"
    assert "█" * 12 in rows[0]


def test_jobs_that_share_and_what_they_post(shared_forebay: Forebay) -> None:
    ratios = []
    for posted in ("epoch", "next", "all"):
        args = ("2000x1MiB", "--jobs", "2", "--policy", "next-use", "--cache", "1000MiB", "--posted", posted, "--json")
        (cell,) = shared_forebay.run("simulate", *args).json()["cells"]
        ratios.append(cell["hit_ratio"])
    assert 0.6 < ratios[0] < ratios[1] <= ratios[2] + 0.001
    assert ratios[2] == pytest.approx(0.73, abs=0.03)


def test_a_trace(shared_forebay: Forebay, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("key,size\n" + "".join(f"{key},10\n" for key in "abcabdaa"))
    found = shared_forebay.run("simulate", trace, "--cache", "20", "--policy", "lru", "--policy", "next-use", "--json")
    hits = {cell["policy"]: cell["hits"] for cell in found.json()["cells"]}
    assert hits == {"lru": 1, "next-use": 4}
    shown = shared_forebay.run("simulate", trace).out
    assert shown.startswith("4 files, 40 B, read 8 times; the cache is empty at first\n")


def test_a_trace_without_sizes(shared_forebay: Forebay, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("a\nb\na\n")
    found = shared_forebay.run("simulate", trace, "--cache", "1", "--policy", "epoch", "--json").json()
    assert (found["unit"], found["cells"][0]["fetched"]) == ("files", 2)
    err = shared_forebay.run("simulate", trace, "--cache", "1MiB", code=2).err
    assert err.startswith("forebay: cache '1MiB': no sizes are in the trace")
    sized = shared_forebay.run("simulate", trace, "--cache", "1MiB", "--item-size", "1MiB", "--json").json()
    assert (sized["unit"], sized["bytes"]) == ("bytes", 2 << 20)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot(shared_forebay: Forebay, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"curve.{suffix}"
    shared_forebay.run("simulate", "500x1KiB", "--plot", file)
    assert file.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from forebay.cacheruntime.errors import UsageError
    from forebay.cli import simulate_commands

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'forebay\[plot\]'"):
        simulate_commands.check_plot(Path("x.png"))


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("nowhere.csv",), "'nowhere.csv' is neither a file or folder nor a distribution"),
        (("/proc",), "/proc is neither a mount nor a folder with recordings"),
        (("10x1KiB", "--policy", "fifo"), "no cache policy is named 'fifo'; allowed are epoch, sieve, lru, next-use"),
        (("10x1KiB", "--cache", "0%"), "cache '0%': more than 0%"),
        (("10x1KiB", "--cache", "much"), "size 'much' is not a positive number"),
        (("10x1KiB", "--posted", "some"), "--posted 'some'; allowed are all, next, epoch, or a number"),
        (("10x1KiB", "--plot", "x.bmp"), "--plot x.bmp: the name has to end in .png or .svg"),
        (("10x1KiB", "--plot", "/nowhere/x.png"), "--plot /nowhere/x.png: its folder is not there"),
        (("100x1000000TiB",), "all that is read comes to more than 4 EiB"),
        (("x" * 300,), "'xxx"),
        (("10x1KiB", "--mount", "/mnt"), "--mount is for recordings"),
        (("10000000x1KiB", "--jobs", "4"), "10,000,000 files by 4 jobs in 4 epochs are 160,000,000 accesses"),
    ],
)
def test_wrong(shared_forebay: Forebay, args: tuple[str, ...], why: str) -> None:
    done = shared_forebay.run("simulate", *args, code=2)
    assert done.out == ""
    assert done.err.startswith(f"forebay: {why}")
    assert done.err.count("\n") == 1


def test_a_trace_has_jobs_and_epochs_of_its_own(shared_forebay: Forebay, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\n")
    for option in (("--jobs", "2"), ("--epochs", "2"), ("--posted", "epoch")):
        err = shared_forebay.run("simulate", tmp_path / "t", *option, code=2).err
        assert "is for distributions of sizes" in err
