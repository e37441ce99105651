"""The data sets by name: their rows, and what a row opens."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError
from .recording import Recording

if TYPE_CHECKING:
    import datasets

# The columns of every data set, so that several can be concatenated; paths are absolute.
COLUMNS = {
    "dataset": "string",
    "video_id": "string",
    "num_frames": "int64",  # None: as many as the video file has
    "fps": "float64",  # None: the video file tells
    "sigma": "float64",  # of the Gaussian for maps that are made from fixations, in shares of the picture's width
    "video": "string",  # a video file, or a still image
    "frames": "string",  # else a folder of frames ...
    "frames_name": "string",  # ... of this printf-like name
    "audio": "string",  # a sound file beside the frames
    "maps": "string",  # a folder of maps ...
    "maps_name": "string",  # ... of this printf-like name; None: its images in natural order
    "fixations": "string",  # a folder of maps of fixated pixels, likewise
    "fixations_name": "string",
    "points": "string",  # a table of fixations
    "first_number": "int64",  # in the names of frame 0's files
    "seed": "int64",  # of a synthetic scene
}


class Spread(NamedTuple):
    """The Gaussian that makes a map from fixations, about one degree of the visual field.

    Args:
        pixels: standard deviation.
        width: of the picture that these pixels are of.
        reason: where it comes from.
    """

    pixels: float
    width: int
    reason: str


RULE_OF_THUMB = "rule of thumb: a picture is about 30 degrees wide; used only where the data's own maps are missing"
SPREADS = {
    "AVAD": Spread(640 / 30, 640, RULE_OF_THUMB),
    "Coutrot1": Spread(720 / 30, 720, RULE_OF_THUMB),
    "Coutrot2": Spread(1232 / 30, 1232, RULE_OF_THUMB),
    "DIEM": Spread(1280 / 30, 1280, RULE_OF_THUMB),
    "ETMD": Spread(720 / 30, 720, RULE_OF_THUMB),
    "SumMe": Spread(1280 / 30, 1280, RULE_OF_THUMB),
    "DHF1K": Spread(640 / 33, 640, "a screen 41 cm wide (19 inches, 16:10) seen from 68 cm: about 33 degrees"),
    "Hollywood2": Spread(720 / 38, 720, "the clips were shown about 38 degrees wide (Mathe and Sminchisescu)"),
    "UCFSports": Spread(720 / 38, 720, "the clips were shown about 38 degrees wide (Mathe and Sminchisescu)"),
    **dict.fromkeys(
        ("OSIE", "OSIE-still", "OSIE-voiced"),
        Spread(24.0, 800, "one degree is 24 pixels of the 800x600 originals (Xu et al. 2014)"),
    ),
    "folder": Spread(1280 / 30, 1280, RULE_OF_THUMB.split(";")[0]),
}


@dataclass(frozen=True)
class SaliencyDataset:
    """A data set that can be loaded by name.

    Args:
        name: the name.
        list_entries: gives the rows for (root, split, fold), from lists and directory listings; columns that it
            leaves out are `None`.
        open_entry: turns a row into a recording.
        layout: what is expected in the root, in words.
        splits: the splits there are.
        folds: the folds there are, `(None,)` for a set that has none.
        needs_root: whether it lies on disk.
    """

    name: str
    list_entries: Callable[[Path | None, str, int | None], list[dict[str, Any]]]
    open_entry: Callable[[Mapping[str, Any]], Recording]
    layout: str
    splits: tuple[str, ...]
    folds: tuple[int | None, ...] = (None,)
    needs_root: bool = True


SALIENCY_DATASETS: dict[str, SaliencyDataset] = {}


def register_dataset(name: str, **properties: Any) -> Callable[[Callable], Callable]:
    """Decorator: makes the data set whose rows a function lists available as `name`.

    Args:
        name: the name; a name that is taken is replaced.
        properties: the other fields of [`SaliencyDataset`].
    """

    def decorate(list_entries: Callable) -> Callable:
        SALIENCY_DATASETS[name] = SaliencyDataset(name, list_entries, **properties)
        return list_entries

    return decorate


def list_saliency_datasets() -> list[str]:
    """The names of the data sets that [`load_saliency_dataset`] knows."""
    return list(SALIENCY_DATASETS)


def load_saliency_dataset(
    name: str, root: str | Path | None = None, split: str = "train", fold: int | None = None, streaming: bool = False
) -> "datasets.Dataset | datasets.IterableDataset":
    """Lists a data set: one row a video. Only lists and directory listings are read.

    A row is plain data and may be changed, for instance its `sigma` (the Gaussian of maps made from fixations, in
    shares of the picture's width); [`open_recording`] opens it.

    Args:
        name: one of [`list_saliency_datasets`], in upper or lower case.
        root: the folder that the data set lies in; synthetic ones need none.
        split: `"train"`, `"validation"` or `"test"`, where the set has it.
        fold: of the sets with several divisions into training and test videos.
        streaming: give a `datasets.IterableDataset`.

    Raises:
        InputError: there is no such data set, split or fold, or something is missing in `root`.
    """
    import datasets

    dataset = find_saliency_dataset(name)
    if split not in dataset.splits:
        raise InputError(f"{dataset.name} has no split {split!r}; its splits are {', '.join(dataset.splits)}")
    if fold is None and len(dataset.folds) == 1:
        fold = dataset.folds[0]
    if fold not in dataset.folds:
        known = f"has the folds {', '.join(map(str, dataset.folds))}, of which `fold` must name one"
        there = "has no folds: leave `fold` out" if dataset.folds == (None,) else known
        raise InputError(f"{dataset.name} {there}, got {fold!r}")
    if dataset.needs_root:
        root = _checked_root(dataset, root)
    common = dict.fromkeys(COLUMNS) | {"dataset": dataset.name}
    if dataset.name in SPREADS:
        common["sigma"] = SPREADS[dataset.name].pixels / SPREADS[dataset.name].width
    rows = [common | row for row in dataset.list_entries(root, split, fold)]
    features = datasets.Features({column: datasets.Value(kind) for column, kind in COLUMNS.items()})
    # A data set that users register may have columns of its own.
    rows = datasets.Dataset.from_list(rows, features=features if rows and rows[0].keys() == COLUMNS.keys() else None)
    return rows.to_iterable_dataset() if streaming else rows


def open_recording(entry: Mapping[str, Any]) -> Recording:
    """Opens a row of [`load_saliency_dataset`].

    Raises:
        InputError: it is of no known data set, or a video file cannot be read.
    """
    return find_saliency_dataset(entry["dataset"]).open_entry(entry)


def find_saliency_dataset(name: str) -> SaliencyDataset:
    """The data set of a name in upper or lower case.

    Raises:
        InputError: there is none.
    """
    by_case = {known.lower(): dataset for known, dataset in SALIENCY_DATASETS.items()}
    if name.lower() in by_case:
        return by_case[name.lower()]
    close = [by_case[known].name for known in difflib.get_close_matches(name.lower(), by_case)]
    meant = f", did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"there is no data set {name!r}{meant}; the data sets are {', '.join(SALIENCY_DATASETS)}")


def _checked_root(dataset: SaliencyDataset, root: str | Path | None) -> Path:
    expected = f"{dataset.name} is expected there as {dataset.layout}"
    if root is None:
        raise InputError(f"`root`, the folder with the data set, is needed; {expected}")
    root = Path(root).absolute()
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; {expected}")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; {expected}")
    return root
