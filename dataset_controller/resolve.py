"""From a dataset's name to what the worker is told: its stores with their options, references followed, secrets read.

References are followed here, so the worker knows stores only, but for `dataset://NAME@N`: names and versions come from
the snapshot then, which the worker has.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from forebay.cacheruntime.dataset_reference import DEFAULT_NAMESPACE, Reference, parse_reference
from forebay.cacheruntime.dataset_source import PathRule, SourceSpec, StoreMount, Tree, tree_id
from forebay.cacheruntime.errors import SourceNotFound, UsageError
from forebay.cacheruntime.understore.address import parse_address
from forebay.cacheruntime.understore.credentials import resolve_options
from forebay.dataset_controller.dataset_rules import mount_options, mount_path, secret_options
from forebay.dataset_controller.dataset_types import Dataset, Mount, parse_duration, parse_quantity
from forebay.dataset_controller.secret_refs import read_secret
from forebay.dataset_controller.state_folder import Key

_PLACE_VARIABLES = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST", "OSS_ENDPOINT", "AZURE_STORAGE_ENDPOINT",
    "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING",
)  # fmt: skip
"""They decide which store a URL means. A manifest means the same one in every shell, so it says that itself."""


def full_name(key: Key) -> str:
    """How the worker calls a dataset."""
    return f"dataset://{key[0]}/{key[1]}"


def shown_name(key: Key) -> str:
    """How a user writes it."""
    return f"dataset://{key[1]}" if key[0] == DEFAULT_NAMESPACE else full_name(key)


@dataclass(frozen=True)
class Found:
    """What a reference names."""

    dataset: Dataset
    snapshot: int
    """0: what the dataset shows."""
    below: str
    """A path below its root, or ''."""


class Resolver:
    """Resolves names among a set of datasets."""

    def __init__(
        self,
        datasets: Mapping[Key, Dataset],
        secrets: Path,
        environ: Mapping[str, str],
        *,
        without_secrets: bool = False,
    ) -> None:
        """
        Args:
            datasets: all that there are.
            secrets: folder of their secrets.
            environ: of the user, for secrets and what stores take from it.
            without_secrets: leave out those that are not there: enough to know which dataset it is.
        """
        self._datasets = datasets
        self._secrets = secrets
        self._environ = environ
        self._without_secrets = without_secrets

    def among(self, datasets: Mapping[Key, Dataset]) -> "Resolver":
        """The same among other datasets."""
        return Resolver(datasets, self._secrets, self._environ, without_secrets=self._without_secrets)

    def find(self, reference: Reference, namespace: str = DEFAULT_NAMESPACE) -> Found:
        """The dataset that a reference names: in its namespace, else the only one of that name.

        Raises:
            UsageError: there is none, or there are several.
        """
        candidates = list(reference.candidates(namespace))
        for key, snapshot, below in candidates:
            if key in self._datasets:
                return Found(self._datasets[key], snapshot, below)
        (_, name), snapshot, below = candidates[0]
        others = [key for key in self._datasets if key[1] == name]
        if len(others) == 1:
            return Found(self._datasets[others[0]], snapshot, below)
        if others:
            raise UsageError(f"{reference.text}: which one? write {' or '.join(map(full_name, others))}")
        known = ", ".join(sorted(key[1] for key in self._datasets)) or "none"
        raise UsageError(f"{reference.text}: there is no dataset {name}; there are: {known}; see forebay apply")

    def source(self, found: Found) -> SourceSpec:
        """What to attach.

        Raises:
            UsageError: a reference names nothing, goes in a circle, or a secret is missing.
            SourceNotFound: the dataset has nothing at the path.
        """
        dataset = found.dataset
        snapshot = found.snapshot or dataset.spec.snapshot or 0
        stores = tuple(self._stores(dataset, (dataset.key,)))
        name = full_name(dataset.key)
        shown = shown_name(dataset.key) + (f"@{found.snapshot}" if found.snapshot else "")
        if found.below:
            stores = tuple(self._view(dataset, stores, snapshot, found.below))
            name, shown, snapshot = f"{name}/{found.below}", f"{shown}/{found.below}", 0
        return SourceSpec(name, {}, self._tree(dataset, stores, found.below), snapshot, shown)

    def check(self, dataset: Dataset) -> None:
        """That all its references can be followed.

        Raises:
            UsageError, SourceNotFound: as `source` says, secrets apart.
        """
        Resolver(self._datasets, self._secrets, self._environ, without_secrets=True).source(Found(dataset, 0, ""))

    def references(self, key: Key) -> Iterator[tuple[Key, int]]:
        """Who refers to a dataset, and to which snapshot (0: to none in particular)."""
        for other, dataset in self._datasets.items():
            for mount in dataset.spec.mounts:
                reference = parse_reference(mount.mount_point)
                for candidate, snapshot, _ in reference.candidates(other[0]) if reference is not None else ():
                    if candidate in self._datasets:
                        if candidate == key:
                            yield other, snapshot
                        break

    def _stores(self, dataset: Dataset, way: tuple[Key, ...]) -> Iterator[StoreMount]:
        alone = len(dataset.spec.mounts) == 1
        for mount in dataset.spec.mounts:
            path = mount_path(mount, alone)
            reference = parse_reference(mount.mount_point)
            if reference is None:
                yield StoreMount(path, mount.mount_point, self._options(dataset, mount))
                continue
            found = self.find(reference, dataset.key[0])
            if found.dataset.key in way:
                circle = " -> ".join(key[1] for key in (*way, found.dataset.key))
                raise UsageError(f"dataset {dataset.key[1]}: its references go in a circle: {circle}")
            inner = tuple(self._stores(found.dataset, (*way, found.dataset.key)))
            snapshot = found.snapshot or found.dataset.spec.snapshot or 0
            for store in self._view(found.dataset, inner, snapshot, found.below):
                yield replace(store, path="/".join(filter(None, (path, store.path))))

    def _view(self, of: Dataset, stores: tuple[StoreMount, ...], snapshot: int, below: str) -> Iterator[StoreMount]:
        """A dataset's stores at and below a path, or the one store that its snapshot is."""
        name = full_name(of.key)
        owner = tree_id(name, list(stores))
        if snapshot:
            yield StoreMount("", owner=owner, of_dataset=name, of_snapshot=snapshot, of_path=below, stores=stores)
            return
        owned = [store if store.owner else replace(store, owner=owner, owner_path=store.path) for store in stores]
        found = [_below(store, below) for store in owned]
        if not any(found):
            paths = ", ".join(f"/{store.path}" for store in stores)
            raise SourceNotFound(f"{shown_name(of.key)} has nothing at /{below}; its mounts are at {paths}")
        for each in found:
            if each is not None:
                yield each

    def _options(self, dataset: Dataset, mount: Mount) -> dict[str, str]:
        scheme = parse_address(mount.mount_point, {}).scheme
        options, _ = mount_options(dataset, mount, scheme)
        for name, option in secret_options(dataset, mount, scheme).items():
            try:
                options[name] = read_secret(option.value_from.secret_key_ref, self._secrets, self._environ)
            except UsageError as error:
                if not self._without_secrets:
                    raise UsageError(f"dataset {dataset.key[1]}: option {option.name}: {error}") from error
        environ = {name: value for name, value in self._environ.items() if name not in _PLACE_VARIABLES}
        return resolve_options(mount.mount_point, options, environ)

    def _tree(self, dataset: Dataset, stores: tuple[StoreMount, ...], below: str) -> Tree:
        spec = dataset.spec
        policy, owner = spec.cache_policy, spec.owner
        rules = [
            PathRule(
                path.path.strip("/"), parse_quantity(path.quota) if path.quota else 0, path.pinned, path.replicas or 0
            )
            for path in policy.paths
        ]
        pinned = {number for _, number in self.references(dataset.key) if number} | {spec.snapshot or 0}
        shown_owner = ""
        if owner is not None:
            user, group = _one(owner.uid, owner.user), _one(owner.gid, owner.group)
            shown_owner = f"{user}:{group}" if user and group else user
        return Tree(
            stores=stores,
            policy=policy.policy,
            quota_bytes=parse_quantity(policy.quota) if policy.quota else 0,
            # Of a part of the dataset, paths would be others: what it caches belongs to the whole anyway.
            path_rules=() if below else tuple(rules),
            replicas=policy.replicas or 0,
            keep_count=spec.snapshot_history.count,
            keep_age_s=parse_duration(spec.snapshot_history.age) if spec.snapshot_history.age else 0.0,
            keep_pinned=() if below else tuple(sorted(pinned - {0})),
            on_mount=spec.sync_policy.on_mount,
            interval_s=parse_duration(spec.sync_policy.interval) if spec.sync_policy.interval else 0.0,
            owner=shown_owner,
        )


def _one(number: int | None, name: str) -> str:
    return name if number is None else str(number)


def _below(store: StoreMount, path: str) -> StoreMount | None:
    """A store as it is seen from a path below the root of its tree."""
    if not path or store.path.startswith(path + "/"):
        return replace(store, path=store.path[len(path) :].lstrip("/"))
    if store.path and path != store.path and not path.startswith(store.path + "/"):
        return None
    rest = path[len(store.path) :].lstrip("/")
    if store.of_dataset:
        return replace(store, path="", of_path="/".join(filter(None, (store.of_path, rest))))
    source = f"{store.source.rstrip('/')}/{rest}" if rest else store.source
    return replace(store, path="", source=source, owner_path="/".join(filter(None, (store.owner_path, rest))))
