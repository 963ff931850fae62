"""The state folder: what is kept, how, and for whom."""

import stat
from pathlib import Path
from typing import Any

import pytest

from forebay.cacheruntime.config import default_secrets_dir, default_state_dir
from forebay.cacheruntime.errors import UsageError
from forebay.dataset_controller import state_folder
from forebay.dataset_controller.dataset_types import Dataset, SecretKeyRef
from forebay.dataset_controller.manifest_files import parse_document
from forebay.dataset_controller.secret_refs import read_secret
from forebay.dataset_controller.state_folder import StateFolder, described


def dataset(name: str = "imagenet", source: str = "s3://bucket/x", **metadata: Any) -> Dataset:
    return parse_document(
        {
            "apiVersion": "data.forebay.io/v1alpha1",
            "kind": "Dataset",
            "metadata": {"name": name, **metadata},
            "spec": {"mounts": [{"mountPoint": source}]},
        },
        "test",
    )


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "a" / "state")


def test_created_configured_unchanged(folder: StateFolder) -> None:
    with folder.locked():
        assert folder.put(dataset()) == "created"
        assert folder.put(dataset()) == "unchanged"
        assert folder.put(dataset(source="s3://bucket/y")) == "configured"
    stored = folder.get(("default", "imagenet"))
    assert stored is not None
    assert stored.generation == 2
    assert described(stored)["metadata"]["creationTimestamp"] == stored.created.isoformat()
    with folder.locked():
        folder.put(dataset(namespace="other"))
        folder.delete(("default", "imagenet"))
    assert [found.key for found in folder.all()] == [("other", "imagenet")]


def test_only_the_owner_may_look(folder: StateFolder) -> None:
    with folder.locked():
        folder.put(dataset())
    for path in (folder.root, *folder.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_write_that_fails_leaves_what_was_there(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder.locked():
        folder.put(dataset())

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_folder.os, "fsync", fail)
    with folder.locked(), pytest.raises(UsageError, match=r"cannot be written: No space left.*FOREBAY_STATE_DIR"):
        folder.put(dataset(source="s3://bucket/y"))
    stored = folder.get(("default", "imagenet"))
    assert stored is not None
    assert stored.dataset.spec.mounts[0].mount_point == "s3://bucket/x"
    assert [path.name for path in (folder.root / "datasets" / "default").iterdir()] == ["imagenet.json"]


def test_a_damaged_file_is_named(folder: StateFolder) -> None:
    with folder.locked():
        folder.put(dataset())
    path = folder.root / "datasets" / "default" / "imagenet.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UsageError, match=r"imagenet\.json is damaged"):
        folder.all()


def test_where_the_folders_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_state_dir({"FOREBAY_STATE_DIR": "/x"}) == Path("/x")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/var/lib/forebay")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/forebay")
    assert default_secrets_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/forebay/secrets")
    assert default_secrets_dir({"FOREBAY_SECRETS_DIR": "/s"}) == Path("/s")


def test_secrets_are_files_or_variables(tmp_path: Path) -> None:
    ref = SecretKeyRef.model_validate({"name": "my-secret", "key": "aws.accessKeyId"})
    with pytest.raises(UsageError) as caught:
        read_secret(ref, tmp_path, {})
    assert f"{tmp_path}/my-secret/aws.accessKeyId" in str(caught.value)
    assert "MY_SECRET_AWS_ACCESSKEYID" in str(caught.value)
    assert read_secret(ref, tmp_path, {"MY_SECRET_AWS_ACCESSKEYID": "v"}) == "v"
    file = tmp_path / "my-secret" / "aws.accessKeyId"
    file.parent.mkdir()
    file.write_text("from file \n")
    assert read_secret(ref, tmp_path, {"MY_SECRET_AWS_ACCESSKEYID": "v"}) == "from file "
