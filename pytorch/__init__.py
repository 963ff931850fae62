"""`forebay.torch`: PyTorch datasets over the node's cache, read in the training process itself, without a mount.

    from forebay.torch import ForebayDataset, data_loader

    images = ForebayDataset("s3://bucket/imagenet", suffix=".jpg", transform=decode)
    for batch in data_loader(images, batch_size=64, shuffle=True, num_workers=4):
        ...

The folder of this package is called `pytorch/`, so that no folder `torch/` of the repository stands where somebody
looks for PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.torch.dataset import ForebayDataset, ForebayIterableDataset
    from forebay.torch.loader import OrderedSampler, data_loader

__all__ = ["ForebayDataset", "ForebayIterableDataset", "OrderedSampler", "data_loader"]

_HOME = {
    "ForebayDataset": "dataset",
    "ForebayIterableDataset": "dataset",
    "OrderedSampler": "loader",
    "data_loader": "loader",
}


def __getattr__(name: str) -> Any:
    """PyTorch is imported with the first name that needs it; what is below (`files`, `orders`) does without."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "forebay.torch needs PyTorch; install it, or: pip install 'forebay[torch]'", name="torch"
        ) from error
