"""What has to hold between the fields of a dataset, and what its mounts come to. Pure."""

from collections.abc import Iterator
from typing import TypeVar

from forebay.cacheruntime.dataset_reference import parse_reference
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.understore.address import parse_address
from forebay.cacheruntime.understore.factory import ALLOWED_OPTIONS, check_options
from forebay.dataset_controller.dataset_types import Dataset, EncryptOption, Mount
from forebay.dataset_controller.engine_options import our_options

_T = TypeVar("_T")

_TOO_LONG_BYTES = 255


def mount_path(mount: Mount, alone: bool) -> str:
    """Where a mount appears below the dataset's root, without slashes at its ends; '' is the root.

    Raises:
        ValueError: with the field and what is wrong.
    """
    if not mount.path and not mount.name:
        if alone:
            return ""
        raise ValueError("name: is missing, and so is path; several mounts need one or the other")
    field, text = ("path", mount.path) if mount.path else ("name", f"/{mount.name}")
    if field == "name" and "/" in mount.name:
        raise ValueError(f"name: {mount.name!r} has a slash in it; say where it appears by path")
    if not text.startswith("/"):
        raise ValueError(f"path: {text!r} does not begin with a slash; write /{text}")
    parts = text.strip("/").split("/") if text.strip("/") else []
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or len(part.encode()) > _TOO_LONG_BYTES:
            raise ValueError(f"{field}: {text!r} has a part that is no file name: {part!r}")
    if not parts and not alone:
        raise ValueError("path: '/' is the dataset's root, which only a single mount can be; write another")
    return "/".join(parts)


def mount_options(dataset: Dataset, mount: Mount, scheme: str) -> tuple[dict[str, str], list[str]]:
    """Options of a mount by our names, secrets left out, and the names of those that mean nothing here."""
    spec = dataset.spec
    shared, _ = our_options(scheme, spec.shared_options)
    own, left_out = our_options(scheme, mount.options)
    return _fitting(scheme, shared) | own, left_out


def secret_options(dataset: Dataset, mount: Mount, scheme: str) -> dict[str, EncryptOption]:
    """Options of a mount whose values are secrets, by our names; those for all mounts give way to its own options."""
    shared = {_our_name(scheme, option.name): option for option in dataset.spec.shared_encrypt_options}
    own = {_our_name(scheme, option.name): option for option in mount.encrypt_options}
    plain, _ = our_options(scheme, mount.options)
    return {name: option for name, option in _fitting(scheme, shared).items() if name not in plain} | own


def _our_name(scheme: str, name: str) -> str:
    return next(iter(our_options(scheme, {name: ""})[0]), name)


def _fitting(scheme: str, shared: dict[str, _T]) -> dict[str, _T]:
    """What all mounts share may be meant for others."""
    allowed = ALLOWED_OPTIONS.get(scheme)
    return {name: value for name, value in shared.items() if allowed is None or name in allowed}


def problems(dataset: Dataset) -> list[str]:
    """What is wrong beyond single fields, each with the path of its field."""
    found = []
    paths: list[str] = []
    spec = dataset.spec
    for number, mount in enumerate(spec.mounts):
        field = f"spec.mounts[{number}]"
        try:
            path = mount_path(mount, len(spec.mounts) == 1)
        except ValueError as error:
            found.append(f"{field}.{error}")
        else:
            for other, earlier in enumerate(paths):
                if path == earlier:
                    found.append(f"{field}: appears at /{path}, as spec.mounts[{other}] does; give it another path")
                elif f"{path}/".startswith(f"{earlier}/") or f"{earlier}/".startswith(f"{path}/"):
                    found.append(f"{field}: /{path} and /{earlier} of spec.mounts[{other}] lie in each other")
            paths.append(path)
        found += [f"{field}.{text}" for text in _source_problems(dataset, mount)]
    for number, rule in enumerate(spec.cache_policy.paths):
        if ".." in rule.path.split("/"):
            found.append(f"spec.cachePolicy.paths[{number}].path: {rule.path!r} leaves the dataset")
    return found


def _source_problems(dataset: Dataset, mount: Mount) -> Iterator[str]:
    try:
        if parse_reference(mount.mount_point) is not None:
            if mount.options or mount.encrypt_options:
                yield f"options: {mount.mount_point} has those of the dataset that it names; leave them out"
            return
        scheme = parse_address(mount.mount_point, {}).scheme
        options, _ = mount_options(dataset, mount, scheme)
        parse_address(mount.mount_point, options)
    except UsageError as error:
        yield f"mountPoint: {error}"
        return
    for kind, names in (("options", options), ("encryptOptions", secret_options(dataset, mount, scheme))):
        try:
            check_options(scheme, dict.fromkeys(names, ""))
        except UsageError as error:
            yield f"{kind}: {error}"
