"""Train a small model on the CPU from a bucket, with `forebay.torch`: twice, so that the second training is warm.

    python examples/train_cpu.py                                  # an S3 service on loopback is started for it
    python examples/train_cpu.py --source s3://bucket/images      # yours; classes are the folders

Without --source, JPEG images of 10 classes are made and published to moto (in the `dev` extra). Each training opens the
dataset anew, in a cache that is empty for the first one. With --mount the same is done through a FUSE mount as well, as
a program would that knows nothing of Forebay. Writes a plot of samples/s.
"""

import argparse
import colorsys
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from forebay.torch import ForebayDataset, data_loader

SIDE = 32  # pixels that the model sees
CLASSES = 10  # of the images that are made here


def decode(data: bytes) -> torch.Tensor:
    """An image's bytes as the model takes them: 3 x SIDE x SIDE, 0 to 1."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (SIDE, SIDE))  # JPEG decodes at a fraction of its size
    small = image.convert("RGB").resize((SIDE, SIDE))
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


class Labels:
    """The number of a file's class, from its folder's name. A class, so that it can be sent to spawned processes."""

    def __init__(self, folders: list[str]) -> None:
        self.number = {folder: number for number, folder in enumerate(folders)}

    def __call__(self, path: str) -> int:
        return self.number[path.rpartition("/")[0]]


class Folder(Dataset[tuple[torch.Tensor, int]]):
    """What one writes without Forebay: a folder of images, here a mount."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.rglob("*.jpg"))
        self.labels = Labels(sorted({str(path.parent) for path in self.paths}))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.paths[index]
        return decode(path.read_bytes()), self.labels(str(path))


class SmallNet(nn.Sequential):
    """Two convolutions and a linear layer: some 20,000 weights."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Linear(32 * 16, classes),
        )  # fmt: skip


@dataclass
class Training:
    """What one training took."""

    name: str
    files: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of each epoch."""
    losses: list[float] = field(default_factory=list)
    """Mean over each epoch."""

    def rates(self) -> list[float]:
        return [self.files / seconds for seconds in self.seconds]


def train(name: str, open_loader: Callable[[], tuple["DataLoader[Any]", int]], epochs: int) -> Training:
    """Train a new model; what counts is the time of each epoch, loading and learning."""
    torch.manual_seed(1)
    loader, classes = open_loader()
    model, result = SmallNet(classes), Training(name)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
    for epoch in range(epochs):
        started, seen, total = time.perf_counter(), 0, 0.0
        for images, labels in loader:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimiser.step()
            seen += len(labels)
            total += loss.item() * len(labels)
        result.files = seen
        result.seconds.append(time.perf_counter() - started)
        result.losses.append(total / seen)
        print(
            f"{name:<24} epoch {epoch}: {seen / result.seconds[-1]:7.0f} samples/s, loss {total / seen:.3f}", flush=True
        )
    return result


def make_images(folder: Path, count: int) -> dict[str, Path]:
    """Noisy images of some 40 KiB, each class with a tint of its own: key -> local copy."""
    chance, made = random.Random(1), {}
    for number in range(count):
        label = number % CLASSES
        noise = Image.effect_noise((256, 256), 60.0)
        tint = Image.new("RGB", noise.size, colour(label / CLASSES, chance.uniform(0.3, 1.0)))
        key = f"class-{label}/{number:06}.jpg"
        made[key] = folder / key
        made[key].parent.mkdir(parents=True, exist_ok=True)
        Image.blend(Image.merge("RGB", (noise, noise, noise)), tint, 0.3).save(made[key], "JPEG", quality=90)
    return made


def colour(hue: float, saturation: float) -> tuple[int, int, int]:
    """A colour as PIL takes it."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.8)
    return int(255 * red), int(255 * green), int(255 * blue)


@contextmanager
def own_bucket(folder: Path, images: int) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket with images on an S3 service of its own: the source, and the options for it."""
    from forebay.bench.endpoint import moto_endpoint

    with moto_endpoint(folder) as endpoint:
        print(f"making {images} images and publishing them to {endpoint.url}", flush=True)
        endpoint.publish("images", make_images(folder / "local", images))
        options = dict(word.split("=", 1) for word in endpoint.options())
        options["access_key_id"], options["secret_access_key"] = endpoint.environ.values()
        yield endpoint.source("images"), options


def plot(trainings: list[Training], path: Path) -> None:
    """Bars of samples/s: one group for each epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    width = 0.8 / len(trainings)
    for number, training in enumerate(trainings):
        at = [epoch + number * width for epoch in range(len(training.seconds))]
        bars = axes.bar(at, training.rates(), width, label=training.name)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks([epoch + 0.4 - width / 2 for epoch in range(len(trainings[0].seconds))], labels=[
        f"epoch {epoch}" for epoch in range(len(trainings[0].seconds))
    ])  # fmt: skip
    axes.set_ylabel("samples/s, loading and learning")
    axes.set_title(f"{trainings[0].files} JPEG images from S3, {os.cpu_count()} CPU cores")
    figure.legend(fontsize=8, ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=130)


def forebay(*words: str, environ: dict[str, str] | None = None) -> None:
    subprocess.run([sys.executable, "-m", "forebay.cli.main", *words], check=True, env=environ)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="URL of images in folders by class; default: a bucket that is made for this")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="for the source")
    parser.add_argument("--images", type=int, default=3000, help="in the bucket that is made (3000)")
    parser.add_argument("--epochs", type=int, default=2, help="of each training (2)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="loading processes (2)")
    parser.add_argument("--mount", action="store_true", help="the same through a mount")
    parser.add_argument("--plot", type=Path, default=Path("train_cpu.png"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the cores are for the loading processes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-train-")))
        options = dict(word.split("=", 1) for word in chosen.option)
        source = chosen.source
        if source is None:
            source, options = stack.enter_context(own_bucket(folder, chosen.images))
        os.environ["FOREBAY_RUNTIME_DIR"] = str(folder / "run")  # a cache of its own, empty and gone afterwards

        def in_process() -> tuple["DataLoader[Any]", int]:
            dataset = ForebayDataset(
                source, options=options, cache_dir=folder / "cache", suffix=(".jpg", ".jpeg", ".JPEG"), transform=decode
            )
            folders = sorted({dataset.path(index).rpartition("/")[0] for index in range(len(dataset))})
            dataset.target = Labels(folders)
            return data_loader(dataset, chosen.batch_size, shuffle=True, num_workers=chosen.workers), len(folders)

        trainings = [
            train("forebay.torch, cold", in_process, chosen.epochs),
            train("forebay.torch, warm", in_process, chosen.epochs),
        ]
        if chosen.mount:
            trainings += through_mount(folder, source, options, chosen)
        plot(trainings, chosen.plot)
    cold, warm = trainings[0].rates()[0], trainings[1].rates()[0]
    print(f"the first epoch: {cold:.0f} samples/s cold, {warm:.0f} warm ({warm / cold:.1f} times); plot: {chosen.plot}")
    return 0


def through_mount(folder: Path, source: str, options: dict[str, str], chosen: argparse.Namespace) -> list[Training]:
    """Cold and warm as well, with a cache of its own."""
    point, cache = folder / "mount", str(folder / "mount-cache")
    point.mkdir()
    words = [word for item in options.items() for word in ("--option", "=".join(item))]
    forebay("mount", source, str(point), "--cache-dir", cache, *words)

    def loader() -> tuple["DataLoader[Any]", int]:
        files = Folder(point)
        made = DataLoader(files, chosen.batch_size, shuffle=True, num_workers=chosen.workers)
        return made, len(files.labels.number)

    try:
        return [train(f"mount, {state}", loader, chosen.epochs) for state in ("cold", "warm")]
    finally:
        forebay("umount", str(point))


if __name__ == "__main__":
    sys.exit(main())
