"""`forebay apply`, `get`, `describe`, `delete` without a mount: what they print, keep and refuse."""

import json
import os
import stat
from pathlib import Path

import pytest
from forebay_command import Forebay

pytestmark = pytest.mark.slow

FLUID = Path(__file__).with_name("manifests") / "fluid-s3.yaml"
VIEW = {
    "apiVersion": "data.forebay.io/v1alpha1",
    "kind": "Dataset",
    "metadata": {"name": "view"},
    "spec": {"mounts": [{"mountPoint": "dataset://imagenet@2/images"}]},
}


def test_a_fluid_manifest_from_apply_to_delete(forebay: Forebay) -> None:
    done = forebay.run("apply", "-f", FLUID)
    assert done.out == "dataset/imagenet created\n"
    assert done.err == (
        "note: dataset imagenet: spec.mounts[0].options: of no meaning here, left out: alluxio.underfs.s3.inherit.acl\n"
    )
    assert stat.S_IMODE(forebay.state_dir.stat().st_mode) == 0o700
    described = forebay.run("describe", "imagenet").out
    for line in ("store      /images  s3://training/imagenet/", "endpoint: http://minio:9000", "phase      NotBound"):
        assert line in described
    again = forebay.root / "again.yaml"
    again.write_text(forebay.run("get", "imagenet", "-o", "yaml").out)
    assert forebay.run("apply", "-f", again).out == "dataset/imagenet unchanged\n"
    view = forebay.root / "view.json"
    view.write_text(json.dumps(VIEW))
    assert forebay.run("apply", "-f", view, "-f", FLUID).out == "dataset/view created\ndataset/imagenet unchanged\n"
    lines = forebay.run("get", "datasets").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "imagenet", "view"]
    assert "s3://training/imagenet/ +1" in lines[1]
    assert "dataset://imagenet@2/images" in lines[2]
    assert [each["metadata"]["name"] for each in forebay.run("get", "-o", "json").json()] == ["imagenet", "view"]
    assert forebay.run("delete", "imagenet", code=2).err == (
        "forebay: dataset imagenet is referred to by view; delete or change these first\n"
    )
    assert forebay.run("delete", "-f", FLUID, "-f", view).out == "dataset/imagenet deleted\ndataset/view deleted\n"
    assert forebay.run("delete", "view", code=2).err == "forebay: there is no dataset view; there are: none\n"
    assert not forebay.cache_dir.exists(), "no worker was started for it"


@pytest.mark.semantics("S6")
def test_nothing_is_kept_unless_all_is_right(forebay: Forebay) -> None:
    two = forebay.root / "two.yaml"
    bad = json.dumps(VIEW | {"metadata": {"name": "bad"}, "spec": {"mounts": [{"mountpoint": "s3://b"}]}})
    two.write_text(f"{FLUID.read_text()}\n---\n{bad}\n")
    done = forebay.run("apply", "-f", two, code=2)
    assert done.out == ""
    assert done.err.startswith(
        f"forebay: {two}: bad: spec.mounts[0].mountPoint: is missing; spec.mounts[0].mountpoint: "
    )
    assert "unknown field; did you mean mountPoint? allowed: mountPoint, name, path" in done.err
    assert len(done.err.splitlines()) == 1
    assert forebay.run("get", "-o", "name").out == ""
    assert not forebay.state_dir.exists()
    for words in (["apply"], ["delete"], ["get", "-o", "xml"], ["snapshots", "x", "--keep", "1"]):
        assert len(forebay.run(*words, code=2).err.splitlines()) == 1


def test_a_key_in_plain_text_is_noted(forebay: Forebay) -> None:
    file = forebay.root / "plain.yaml"
    options = {"access_key_id": "AK", "secret_access_key": "very-secret"}
    file.write_text(json.dumps(VIEW | {"spec": {"mounts": [{"mountPoint": "s3://bucket", "options": options}]}}))
    assert (
        "is a secret in plain text; encryptOptions keeps it out of the manifest" in forebay.run("apply", "-f", file).err
    )
    assert "very-secret" not in forebay.run("describe", "view").out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked for /var/lib/forebay")
def test_a_state_folder_that_cannot_be_written(forebay: Forebay) -> None:
    done = forebay.run("apply", "-f", FLUID, code=2, environ={"FOREBAY_STATE_DIR": "/proc/forebay"})
    assert done.err.startswith("forebay: the state folder /proc/forebay cannot be written: ")
    assert done.err.endswith("name another by FOREBAY_STATE_DIR\n")
