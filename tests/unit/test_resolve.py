"""From names to stores: references, circles, snapshots, secrets."""

from pathlib import Path
from typing import Any

import pytest

from forebay.cacheruntime.dataset_reference import parse_reference
from forebay.cacheruntime.dataset_source import SourceSpec, StoreMount, Tree, tree_id
from forebay.cacheruntime.errors import ForebayError, SourceNotFound, UsageError
from forebay.dataset_controller.dataset_types import Dataset
from forebay.dataset_controller.manifest_files import parse_document, read_manifests
from forebay.dataset_controller.resolve import Found, Resolver
from forebay.proto import worker_pb2 as pb

FLUID = Path(__file__).with_name("manifests") / "fluid-s3.yaml"


def dataset(name: str, *mounts: tuple[str, str], namespace: str = "default", **spec: Any) -> Dataset:
    document = {
        "apiVersion": "data.forebay.io/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"mounts": [{"mountPoint": source, "path": path} for source, path in mounts], **spec},
    }
    return parse_document(document, "test")


def resolver(*datasets: Dataset, **more: Any) -> Resolver:
    return Resolver({d.key: d for d in datasets}, Path("/nowhere"), {}, **more)


def source(text: str, *datasets: Dataset) -> SourceSpec:
    reference = parse_reference(text)
    assert reference is not None
    found = resolver(*datasets)
    return found.source(found.find(reference))


def stores(spec: SourceSpec) -> list[tuple[str, str]]:
    assert spec.tree is not None
    return [(store.path, store.url) for store in spec.tree.stores]


BOTH = dataset("both", ("s3://b/images", "/train/images"), ("file:///data/labels", "/labels"))
BOTH_ID = tree_id(
    "dataset://default/both",
    [StoreMount("train/images", "s3://b/images"), StoreMount("labels", "file:///data/labels")],
)


def test_a_dataset_is_its_stores() -> None:
    spec = source("dataset://both", BOTH)
    assert (spec.source, spec.shown_source, spec.snapshot) == ("dataset://default/both", "dataset://both", 0)
    assert stores(spec) == [("train/images", "s3://b/images"), ("labels", "file:///data/labels")]
    assert spec.dataset_id == BOTH_ID
    assert spec.owners == ()
    assert spec.roots.url_of(b"train/images/n01/x") == b"s3://b/images/n01/x"
    assert spec.roots.url_of(b"train") == b"dataset://default/both/train"


def test_other_mounts_are_another_dataset_and_other_policies_are_not() -> None:
    same = dataset("both", ("s3://b/images", "/train/images"), ("file:///data/labels", "/labels"), placement="Shared")
    moved = dataset("both", ("s3://b/images", "/images"), ("file:///data/labels", "/labels"))
    namesake = dataset("namesake", ("s3://b/images", "/train/images"), ("file:///data/labels", "/labels"))
    assert source("dataset://both", same).dataset_id == BOTH_ID
    assert source("dataset://both", moved).dataset_id != BOTH_ID
    assert source("dataset://namesake", namesake).dataset_id != BOTH_ID


@pytest.mark.parametrize(
    ("below", "wanted"),
    [
        ("train", [("images", "s3://b/images")]),
        ("train/images", [("", "s3://b/images")]),
        ("train/images/n01", [("", "s3://b/images/n01")]),
        ("labels", [("", "file:///data/labels")]),
    ],
)
def test_a_view_of_a_part(below: str, wanted: list[tuple[str, str]]) -> None:
    spec = source(f"dataset://both/{below}", BOTH)
    assert stores(spec) == wanted
    assert spec.owners == (BOTH_ID,)
    view = dataset("view", (f"dataset://both/{below}", "/v"), ("s3://c", "/c"))
    spec = source("dataset://view", BOTH, view)
    assert stores(spec) == [*((f"v/{path}".rstrip("/"), url) for path, url in wanted), ("c", "s3://c")]
    assert spec.tree is not None
    assert [store.owner_path for store in spec.tree.stores] == ["train/images" if below == "train" else below, ""]
    assert spec.owners == (BOTH_ID,)


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(SourceNotFound, match=r"dataset://both has nothing at /test; its mounts are at /train/images, "):
        source("dataset://both/test", BOTH)


def test_a_view_of_a_snapshot() -> None:
    spec = source("dataset://both@3/train", BOTH)
    assert spec.tree is not None
    (store,) = spec.tree.stores
    assert (store.path, store.of_dataset, store.of_snapshot, store.of_path) == (
        "",
        "dataset://default/both",
        3,
        "train",
    )
    assert store.roots() == [("images", "s3://b/images")]
    assert spec.snapshot == 0, "the view has snapshots of its own"
    view = dataset("view", ("dataset://both@3/train/images/n01", "/old"))
    spec = source("dataset://view", BOTH, view)
    assert spec.roots.url_of(b"old/x") == b"s3://b/images/n01/x"
    assert source("dataset://both", BOTH, view).tree == Tree(
        source("dataset://both", BOTH).tree.stores, keep_count=8, keep_pinned=(3,)  # type: ignore[union-attr]
    )  # fmt: skip


def test_a_view_of_a_dataset_that_is_pinned_shows_what_that_shows() -> None:
    pinned = dataset("both", ("s3://b/images", "/train/images"), snapshot=2)
    assert source("dataset://both", pinned).snapshot == 2
    assert source("dataset://both@5", pinned).snapshot == 5
    spec = source("dataset://view", pinned, dataset("view", ("dataset://both/train", "/v")))
    assert spec.tree is not None
    assert [store.of_snapshot for store in spec.tree.stores] == [2]


def test_views_of_views() -> None:
    one = dataset("one", ("dataset://both/train", "/one"))
    two = dataset("two", ("dataset://one/one/images", "/two"))
    spec = source("dataset://two", BOTH, one, two)
    assert stores(spec) == [("two", "s3://b/images")]
    assert spec.owners == (BOTH_ID,), "what it caches belongs to the one whose stores they are"
    assert spec.tree is not None
    assert [store.owner_path for store in spec.tree.stores] == ["train/images"]


def test_circles_are_refused() -> None:
    one, two = dataset("one", ("dataset://two", "/x")), dataset("two", ("dataset://one", "/x"))
    with pytest.raises(UsageError, match="dataset two: its references go in a circle: one -> two -> one"):
        source("dataset://one", one, two)
    own = dataset("own", ("dataset://own/x", "/x"))
    with pytest.raises(UsageError, match="own -> own"):
        resolver(own).check(own)


def test_names_and_namespaces() -> None:
    ours, theirs = dataset("a", ("s3://ours", "/")), dataset("a", ("s3://theirs", "/"), namespace="ns")
    assert stores(source("dataset://a", ours, theirs)) == [("", "s3://ours")]
    assert stores(source("dataset://ns/a", ours, theirs)) == [("", "s3://theirs")]
    assert stores(source("dataset://a", theirs)) == [("", "s3://theirs")], "the only one of that name"
    assert source("dataset://ns/a", theirs).shown_source == "dataset://ns/a"
    with pytest.raises(UsageError, match=r"dataset://b: there is no dataset b; there are: a; see forebay apply"):
        source("dataset://b", ours)
    other = dataset("a", ("s3://x", "/"), namespace="mm")
    with pytest.raises(UsageError, match="which one\\? write dataset://mm/a or dataset://ns/a"):
        source("dataset://a", other, theirs)


def test_who_refers_to_whom() -> None:
    view = dataset("view", ("dataset://both@2/train", "/a"), ("dataset://both", "/b"))
    found = resolver(BOTH, view)
    assert list(found.references(BOTH.key)) == [(view.key, 2), (view.key, 0)]
    assert list(found.references(view.key)) == []


def test_secrets_are_read_when_it_is_attached(tmp_path: Path) -> None:
    (fluid,) = read_manifests([str(FLUID)])
    found = Resolver({fluid.key: fluid}, tmp_path, {})
    with pytest.raises(UsageError, match=r"dataset imagenet: option aws\.accessKeyId: key aws\.accessKeyId of secret"):
        found.source(Found(fluid, 0, ""))
    found.check(fluid)
    without = Resolver({fluid.key: fluid}, tmp_path, {}, without_secrets=True).source(Found(fluid, 0, ""))
    environ = {"MY_SECRET_AWS_ACCESSKEYID": "AK", "MY_SECRET_AWS_SECRETKEY": "very-secret"}
    spec = Resolver({fluid.key: fluid}, tmp_path, environ).source(Found(fluid, 0, ""))
    assert spec.dataset_id == without.dataset_id, "which dataset it is does not hang on secrets"
    assert spec.tree is not None
    assert spec.tree.stores[0].options == {
        "endpoint": "http://minio:9000", "region": "eu-central-1", "path_style": "true",
        "access_key_id": "AK", "secret_access_key": "very-secret",
    }  # fmt: skip
    assert spec.tree.owner == "1005:1006"
    assert "very-secret" not in repr(spec)


def test_a_manifest_means_the_same_stores_in_every_shell() -> None:
    plain = dataset("plain", ("s3://b/x", "/s3"), ("az://c/y", "/az"))
    environ = {
        "AWS_ENDPOINT_URL": "http://elsewhere", "AZURE_STORAGE_ACCOUNT": "other", "AWS_ACCESS_KEY_ID": "AK",
        "AWS_SECRET_ACCESS_KEY": "SK",
    }  # fmt: skip
    spec = Resolver({plain.key: plain}, Path("/nowhere"), environ).source(Found(plain, 0, ""))
    assert spec.dataset_id == source("dataset://plain", plain).dataset_id
    assert spec.tree is not None
    assert spec.tree.stores[0].options == {"access_key_id": "AK", "secret_access_key": "SK"}


def test_what_travels_comes_back() -> None:
    view = dataset(
        "view", ("dataset://both@3/train", "/old"), ("s3://c", "/c"),
        cachePolicy={
            "policy": "lru", "quota": "2Gi", "replicas": 2,
            "paths": [{"path": "/c/x", "pinned": True, "quota": "1Gi", "replicas": 3}],
        },
        snapshotHistory={"count": 3, "age": "2d"}, syncPolicy={"interval": "10m", "onMount": False},
    )  # fmt: skip
    tree = source("dataset://view", BOTH, view).tree
    assert tree is not None
    assert Tree.from_json(tree.to_json()) == tree
    assert tuple(StoreMount.from_proto(store.to_proto()) for store in tree.stores) == tree.stores
    policy = pb.CachePolicy(
        policy="lru",
        quota_bytes=2 << 30,
        replicas=2,
        paths=[pb.PathRule(path=b"c/x", quota_bytes=1 << 30, pinned=True, replicas=3)],
    )
    assert tree.cache_policy() == policy
    asked = SourceSpec("dataset://view", {}, tree).attach_request(cache_policy="next-use").cache_policy
    policy.policy = "next-use"
    assert asked == policy, "a program chooses the policy; quotas and pins stay the manifest's"
    assert tree.retention() == pb.Retention(count=3, age_s=2 * 86400.0)
    assert (tree.interval_s, tree.on_mount) == (600.0, False)


def test_apply_refuses_a_reference_to_nothing() -> None:
    view = dataset("view", ("dataset://nobody/x", "/v"))
    with pytest.raises(ForebayError, match="there is no dataset nobody"):
        resolver(view).check(view)
