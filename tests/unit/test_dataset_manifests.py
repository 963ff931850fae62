"""Manifests: what is taken, and in which words the rest is refused."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest

from forebay.cacheruntime.dataset_reference import parse_reference
from forebay.cacheruntime.errors import UsageError
from forebay.dataset_controller.dataset_rules import mount_options, mount_path, secret_options
from forebay.dataset_controller.dataset_types import Dataset, json_schema, parse_duration, parse_quantity
from forebay.dataset_controller.manifest_files import parse_document, read_manifests

FLUID = Path(__file__).with_name("manifests") / "fluid-s3.yaml"
PLAIN: dict[str, Any] = {
    "apiVersion": "data.forebay.io/v1alpha1",
    "kind": "Dataset",
    "metadata": {"name": "imagenet"},
    "spec": {"mounts": [{"mountPoint": "s3://bucket/images", "name": "images"}]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """PLAIN with one field set, such as `spec.mounts.0.readOnly`."""
    document = copy.deepcopy(PLAIN)
    *above, last = path.split(".")
    at: Any = document
    for part in above:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value
    return document


def refusal(document: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse_document(document, "dataset.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fluid_manifest_needs_another_version_and_no_more() -> None:
    (dataset,) = read_manifests([str(FLUID)])
    assert dataset.key == ("default", "imagenet")
    first, second = dataset.spec.mounts
    assert [mount_path(mount, alone=False) for mount in (first, second)] == ["images", "labels"]
    options, left_out = mount_options(dataset, first, "s3")
    assert options == {"endpoint": "http://minio:9000", "region": "eu-central-1", "path_style": "true"}
    assert left_out == ["alluxio.underfs.s3.inherit.acl"]
    secrets = {
        name: option.value_from.secret_key_ref.key for name, option in secret_options(dataset, first, "s3").items()
    }
    assert secrets == {"access_key_id": "aws.accessKeyId", "secret_access_key": "aws.secretKey"}
    assert mount_options(dataset, second, "file") == ({}, []), "what all mounts share is not for a folder"


def test_fluids_own_version_is_told_what_to_change(tmp_path: Path) -> None:
    file = tmp_path / "fluid.yaml"
    file.write_text(FLUID.read_text().replace("data.forebay.io", "data.fluid.io"))
    with pytest.raises(UsageError) as caught:
        read_manifests([str(file)])
    assert str(caught.value) == (
        f"{file}: imagenet: apiVersion: data.fluid.io/v1alpha1 is not ours; write apiVersion: data.forebay.io/v1alpha1"
        " (a Fluid manifest needs no other change)"
    )


def test_what_the_user_wrote_is_what_is_kept() -> None:
    (dataset,) = read_manifests([str(FLUID)])
    again = parse_document(dataset.manifest(), "kept")
    assert again.manifest() == dataset.manifest()
    assert "syncPolicy" not in dataset.manifest()["spec"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "spec.mounts.0.readonly", True,
            "spec.mounts[0].readonly: unknown field; did you mean readOnly?"
            " allowed: mountPoint, name, path, options, encryptOptions, readOnly, shared",
        ),
        ("spec.mount", [], "spec.mount: unknown field; did you mean mounts? allowed: mounts, sharedOptions"),
        ("specs", {}, "specs: unknown field; did you mean spec? allowed: apiVersion, kind, metadata, spec, status"),
        ("spec.mounts.0.readOnly", "true", 'spec.mounts[0].readOnly: "true" is not true or false'),
        ("spec.mounts.0.options", {"anon": True}, 'spec.mounts[0].options.anon: true is not text; write it in'),
        ("spec.mounts.0.options", {"anno": "1"}, "spec.mounts[0].options: option 'anno' is not known for s3"),
        ("spec.mounts", {}, "spec.mounts: {} is not a list"),
        ("spec.mounts", [], "spec.mounts: []: list should have at least 1 item"),
        ("spec.mounts.0.mountPoint", "foo://x/y", "spec.mounts[0].mountPoint: scheme 'foo' of source 'foo://x/y'"),
        ("spec.mounts.0.mountPoint", "s3://", "spec.mounts[0].mountPoint: source 's3://' names no bucket"),
        ("spec.mounts.0.mountPoint", "dataset://A_B", "spec.mounts[0].mountPoint: 'dataset://A_B' names no dataset"),
        ("spec.mounts.0.path", "x", "spec.mounts[0].path: 'x' does not begin with a slash; write /x"),
        ("spec.mounts.0.path", "/a/../b", "spec.mounts[0].path: '/a/../b' has a part that is no file name: '..'"),
        ("spec.mounts.0.name", "a/b", "spec.mounts[0].name: 'a/b' has a slash in it"),
        ("spec.placement", "Alone", "spec.placement: \"Alone\" is not allowed; allowed: 'Exclusive', 'Shared', ''"),
        ("spec.cachePolicy", {"policy": "fifo"}, "allowed: 'epoch', 'sieve', 'lru', 'next-use'"),
        ("spec.cachePolicy", {"replicas": 0}, "spec.cachePolicy.replicas"),
        ("spec.cachePolicy", {"paths": [{"path": "/a", "replicas": "2"}]}, "spec.cachePolicy.paths[0].replicas"),
        ("spec.cachePolicy", {"quota": "3 apples"}, "spec.cachePolicy.quota: size '3 apples' is not a positive number"),
        ("spec.syncPolicy", {"interval": "10 min"}, "spec.syncPolicy.interval: '10 min' is not a duration; write"),
        ("spec.snapshot", 0, "spec.snapshot: 0: input should be greater than or equal to 1"),
        ("spec.snapshot", "3", 'spec.snapshot: "3" is not a whole number'),
        ("metadata.name", "Image_Net", 'metadata.name: "Image_Net" is not allowed; write lower-case letters'),
        ("kind", "DataSet", "kind: DataSet of data.forebay.io is not known; allowed: Dataset"),
        ("kind", "AlluxioRuntime", "leave that document out: tiers are given by --tier"),
        (
            "spec.mounts.0.encryptOptions",
            [{"name": "k", "valueFrom": {"secretKeyRef": {"name": "s", "key": "../../x"}}}],
            'spec.mounts[0].encryptOptions[0].valueFrom.secretKeyRef.key: "../../x" does not match',
        ),
        (
            "spec.nodeAffinity",
            {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "in"}]}]}},
            'spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].operator: "in" is not allowed',
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_allowed(path: str, value: Any, words: str) -> None:
    message = refusal(changed(path, value))
    assert message.startswith("dataset.yaml: ")
    assert words in message


def test_a_mounts_own_options_win_and_secrets_win_among_them() -> None:
    def secret(name: str, key: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": "s", "key": key}}}

    document = changed("spec.sharedOptions", {"region": "shared", "endpoint": "http://shared"})
    document["spec"]["sharedEncryptOptions"] = [secret("region", "x"), secret("aws.accessKeyId", "shared")]
    document["spec"]["mounts"][0] |= {
        "options": {"region": "own", "access_key_id": "plain", "profile": "p"},
        "encryptOptions": [secret("access_key_id", "own")],
    }
    dataset = parse_document(document, "f")
    (mount,) = dataset.spec.mounts
    options, _ = mount_options(dataset, mount, "s3")
    assert options == {"endpoint": "http://shared", "region": "own", "access_key_id": "plain", "profile": "p"}
    secrets = secret_options(dataset, mount, "s3")
    assert {name: option.value_from.secret_key_ref.key for name, option in secrets.items()} == {"access_key_id": "own"}


def test_a_missing_field_is_named() -> None:
    document = copy.deepcopy(PLAIN)
    del document["metadata"]["name"]
    assert refusal(document) == "dataset.yaml: document 1: metadata.name: is missing"


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["/a", "/a"], "spec.mounts[1]: appears at /a, as spec.mounts[0] does"),
        (["/a", "/a/b"], "spec.mounts[1]: /a/b and /a of spec.mounts[0] lie in each other"),
        (["/a/b", "/a"], "lie in each other"),
        (["/", "/a"], "'/' is the dataset's root, which only a single mount can be"),
        (["", "/a"], "spec.mounts[0].name: is missing, and so is path"),
    ],
)
def test_mounts_do_not_lie_in_each_other(paths: list[str], words: str) -> None:
    mounts = [{"mountPoint": "s3://bucket/x", "path": path} for path in paths]
    assert words in refusal(changed("spec.mounts", mounts))


@pytest.mark.parametrize(
    ("mount", "path"),
    [
        ({"name": "x"}, "x"),
        ({"name": "x", "path": "/"}, ""),
        ({}, ""),
        ({"path": "/a/b/"}, "a/b"),
        ({"name": "x", "path": "/y"}, "y"),
    ],
)
def test_where_a_single_mount_appears(mount: dict[str, Any], path: str) -> None:
    document = changed("spec.mounts", [mount | {"mountPoint": "s3://bucket/x"}])
    dataset = parse_document(document, "f")
    assert mount_path(dataset.spec.mounts[0], alone=True) == path


def test_names_that_begin_alike_are_apart() -> None:
    mounts = [{"mountPoint": "s3://bucket/x", "path": path} for path in ("/a", "/a-b", "/ab")]
    parse_document(changed("spec.mounts", mounts), "f")


def test_what_a_cluster_adds_is_left_out() -> None:
    document = changed("metadata.uid", "1-2-3") | {"status": {"phase": "Bound"}}
    document["metadata"] |= {"resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    assert parse_document(document, "f").manifest() == PLAIN


def test_files_with_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "two.yaml"
    text = FLUID.read_text()
    file.write_text(f"---\n{text}\n---\n---\n{text.replace('name: imagenet', 'name: other')}")
    assert [dataset.metadata.name for dataset in read_manifests([str(file)])] == ["imagenet", "other"]
    monkeypatch.setattr("sys.stdin", io.StringIO(text.replace("name: imagenet", "name: third")))
    assert [dataset.metadata.name for dataset in read_manifests([str(file), "-"])] == ["imagenet", "other", "third"]
    with pytest.raises(UsageError, match="imagenet is there twice"):
        read_manifests([str(file), str(FLUID)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("kind: Dataset\nkind: Dataset\n", "'kind' is there twice"),
        ("- 1\n", "is not a mapping"),
        ("", "there is no document in it"),
        ("1: 2\n", "[1]: 1: keys should be strings"),
        ("? [a]\n: 1\n", "is not YAML"),
    ],
)
def test_files_that_are_no_manifests(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_manifests([str(file)])
    assert str(file) in str(caught.value)
    assert words in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_manifests([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("1h30m", 5400), ("7d", 604800), ("0.5s", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10m ", "-1s", "0s", "1y", "s10"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_quantities() -> None:
    assert parse_quantity("2Gi") == parse_quantity("2GiB") == 2 << 30


def test_references() -> None:
    def candidates(text: str) -> list[Any]:
        reference = parse_reference(text)
        assert reference is not None
        return list(reference.candidates("default"))

    assert parse_reference("s3://a/b") is None
    assert candidates("dataset://a") == [(("default", "a"), 0, "")]
    assert candidates("dataset://a@3/x/y/") == [(("default", "a"), 3, "x/y")]
    assert candidates("dataset://ns/a@2/x") == [(("default", "ns"), 0, "a@2/x"), (("ns", "a"), 2, "x")]
    for wrong in ("dataset://", "dataset:///", "dataset://a@0", "dataset://a@x", "dataset://a/../b"):
        with pytest.raises(UsageError, match="names no dataset"):
            parse_reference(wrong)


def test_the_schema_is_that_of_the_models() -> None:
    schema = json_schema()
    assert schema["required"] == ["apiVersion", "kind", "metadata", "spec"]
    assert schema["additionalProperties"] is False
    mount = schema["$defs"]["Mount"]
    assert set(mount["properties"]) == {
        "mountPoint", "name", "path", "options", "encryptOptions", "readOnly", "shared",
    }  # fmt: skip
    assert {"interval", "onMount"} == set(schema["$defs"]["SyncPolicy"]["properties"])
    assert Dataset.model_validate(PLAIN).manifest() == PLAIN
