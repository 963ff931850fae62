"""The repository tells the truth about itself."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGED = ("cacheruntime", "fuse", "dataset_controller", "scheduler", "proto", "cli", "pytorch")


def test_generated_protobuf_modules_are_current(tmp_path: Path) -> None:
    out = tmp_path / "forebay" / "proto"
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Iforebay/proto={ROOT}/proto"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, *map(str, (ROOT / "proto").glob("*.proto"))], check=True)
    for made in out.iterdir():
        assert made.read_text() == (ROOT / "proto" / made.name).read_text(), f"{made.name} is stale: run make proto"


@pytest.mark.slow
def test_wheel_has_every_module_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "-w", tmp_path, ROOT],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGED],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert packed == {f"forebay/{name}".replace("forebay/pytorch/", "forebay/torch/") for name in tracked}


def test_editable_links_point_at_the_folders() -> None:
    sources = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "sources"
    ]
    for folder, target in sources.items():
        assert (ROOT / ".editable" / target).resolve() == (ROOT / folder).resolve()


def test_top_folders_shadow_nobody() -> None:
    assert not [folder for folder in PACKAGED if folder != "pytorch" and (ROOT / folder / "__init__.py").exists()]
    assert not (ROOT / "torch").exists(), "who looks for PyTorch from here must find PyTorch, or nothing"


def test_readme_names_only_commands_and_targets_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)`", readme)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    help_text = subprocess.run(
        [sys.executable, "-m", "forebay.cli.main", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for command in set(re.findall(r"^\s*(?:\$ )?forebay (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"^\s+{command}\s", help_text, re.MULTILINE), f"forebay {command}"


HEAVY = ("grpc", "trio", "lmdb", "obstore", "botocore", "fsspec", "pyarrow", "pydantic", "yaml", "cryptography", "jwt")


def test_help_imports_nothing_heavy() -> None:
    """`--help` answers in under 0.3 s as nothing heavy is imported for it; the time itself depends on the machine."""
    code = f"""
import sys
sys.argv = ["forebay", "--help"]
try:
    from forebay.cli.main import run
    run()
except SystemExit:
    print("LOADED", *sorted(set({HEAVY}) & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "LOADED"


def test_package_works_without_a_compiler() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert not [name for name in requirements if name.startswith("pyfuse3")]
