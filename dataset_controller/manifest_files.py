"""Reading manifests: YAML files with any number of documents, each checked whole before anything is done with it."""

import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from forebay.cacheruntime.errors import UsageError
from forebay.dataset_controller.dataset_rules import problems
from forebay.dataset_controller.dataset_types import API_VERSION, GROUP, Dataset
from forebay.dataset_controller.manifest_errors import describe

_KINDS = ("Dataset",)


class _Loader(yaml.SafeLoader):
    """Takes a key that is there twice for the mistake that it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise yaml.MarkedYAMLError(problem=f"{key!r} is there twice", problem_mark=mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_manifests(files: list[str]) -> list[Dataset]:
    """The datasets in these files, in order.

    Args:
        files: paths; '-' is standard input.

    Raises:
        UsageError: one cannot be read, or is no valid manifest: file, document, path of the field, what is allowed.
    """
    found = [dataset for file in files for dataset in _of_file(file)]
    if not found:
        raise UsageError(f"{', '.join(files)}: there is no document in it")
    keys = [dataset.key for dataset in found]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"{', '.join(files)}: dataset {key[1]} is there twice; leave one of them")
    return found


def _of_file(file: str) -> Iterator[Dataset]:
    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        documents = list(yaml.load_all(text, _Loader))
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise UsageError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    for number, document in enumerate(documents, 1):
        if document is not None:  # nothing between two lines of ---
            yield parse_document(document, name, number)


def parse_document(document: Any, file: str, number: int = 1) -> Dataset:
    """One document as a dataset.

    Raises:
        UsageError: as `read_manifests` says.
    """
    name = document.get("metadata", {}) if isinstance(document, dict) else {}
    name = name.get("name") if isinstance(name, dict) else None
    where = f"{file}: {name if isinstance(name, str) else f'document {number}'}"
    if not isinstance(document, dict):
        raise UsageError(f"{where}: is not a mapping; write apiVersion: {API_VERSION}, kind: Dataset and so on")
    version, kind = document.get("apiVersion"), document.get("kind")
    if isinstance(version, str) and version != API_VERSION:
        fluid = " (a Fluid manifest needs no other change)" if version.startswith("data.fluid.io/") else ""
        raise UsageError(f"{where}: apiVersion: {version} is not ours; write apiVersion: {API_VERSION}{fluid}")
    if isinstance(kind, str) and kind not in _KINDS:
        more = "; leave that document out: tiers are given by --tier" if kind.endswith("Runtime") else ""
        raise UsageError(f"{where}: kind: {kind} of {GROUP} is not known; allowed: {', '.join(_KINDS)}{more}")
    try:
        dataset = Dataset.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{where}: {describe(error, Dataset)}") from error
    if wrong := problems(dataset):
        raise UsageError(f"{where}: {'; '.join(wrong)}")
    return dataset
