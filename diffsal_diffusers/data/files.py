"""Files of data sets: listings, numbered files, pictures, maps, fixations, tables of points."""

import os
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..media.video import IMAGE_SUFFIXES, image_pixels

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv", ".3gp"
)  # fmt: skip


def file_names(folder: Path) -> list[str]:
    """The names of what lies in a folder, in natural order, hidden ones left out.

    Raises:
        InputError: there is no such folder, or it cannot be listed.
    """
    try:
        return sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural_key)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from None


def natural_key(name: str) -> list:
    """Sorts the numbers in names as numbers."""
    # Every second part is a number.
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


@dataclass(frozen=True)
class NumberedFiles:
    """Files of one name with a number in it.

    Args:
        name: printf-like, as `img_%05d.jpg`.
        first, last: the smallest and the largest number.
    """

    name: str
    first: int
    last: int


def numbered_images(folder: Path) -> NumberedFiles | None:
    """How the images of a folder are numbered; `None` where it holds none. Only the names are read.

    Raises:
        InputError: the folder cannot be listed, or its images have several names beside the number.
    """
    parts = [match.groups() for name in _listed(folder) if (match := re.fullmatch(r"(.*?)([0-9]+)(\.[^.]+)", name))]
    parts = [(prefix, digits, suffix) for prefix, digits, suffix in parts if suffix.lower() in IMAGE_SUFFIXES]
    if not parts:
        return None
    numbers = [int(digits) for _, digits, _ in parts]
    prefix, digits, suffix = parts[numbers.index(min(numbers))]
    for other in parts:
        if (other[0], other[2]) != (prefix, suffix):
            raise InputError(
                f"{folder} holds {prefix + digits + suffix} and {''.join(other)}; its images must have one name but "
                "for their number"
            )
    before, after = prefix.replace("%", "%%"), suffix.replace("%", "%%")
    return NumberedFiles(f"{before}%0{len(digits)}d{after}", min(numbers), max(numbers))


def _listed(folder: Path) -> list[str]:
    # Unlike `file_names`, not sorted: a large data set has a million frames.
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from None


@dataclass(frozen=True)
class FileSequence:
    """One file a frame.

    Args:
        folder: where the files lie.
        name: printf-like, as `eyeMap_%05d.jpg`; `None` for all images of the folder in natural order.
        first: number of frame 0.
    """

    folder: str
    name: str | None = None
    first: int = 0

    def path(self, index: int) -> Path:
        """The file of a frame, counted from 0.

        Raises:
            InputError: a sequence in natural order ends before it.
        """
        if self.name is not None:
            return Path(self.folder, self.name % (self.first + index))
        files = self.files()
        if index >= len(files):
            raise InputError(f"{self.folder} holds {len(files)} images; one for each frame is expected, also {index}")
        return Path(self.folder, files[index])

    def files(self) -> list[str]:
        """The names of the folder's images in natural order."""
        return image_names(self.folder, changed_at(self.folder))


@lru_cache(maxsize=16)
def image_names(folder: str, changed: int) -> list[str]:
    """The names of a folder's images in natural order; `changed` is when the folder did."""
    return [name for name in file_names(Path(folder)) if name.lower().endswith(IMAGE_SUFFIXES)]


def changed_at(path: str | Path) -> int:
    """When a file was last changed: what is kept of it is good for as long as this is the same."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_picture(path: Path) -> np.ndarray:
    """An image `(height, width, 3)`, uint8 RGB, as the pipelines see it.

    Raises:
        InputError: it is missing or damaged.
    """
    return image_pixels(_load_image(path), str(path))


def read_map(path: Path) -> torch.Tensor:
    """A grey image of 8 or 16 bits: `(height, width)`, float32 in [0, 1].

    Raises:
        InputError: it is missing or damaged.
    """
    image = _load_image(path)
    if image.mode.startswith("I;16"):
        return torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
    if image.mode in ("I", "F"):
        raise InputError(f"{path} has 32-bit pixels of unknown range; maps of 8 or 16 bits are expected")
    return torch.from_numpy(np.asarray(image.convert("L")).astype(np.float32) / 255)


def read_map_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _image_error(path, error) from None


def _load_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _image_error(path, error) from None
    return image


def _image_error(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: there is no such file; one image a frame is expected")
    return InputError(f"{path} cannot be read as an image: it is damaged or cut short ({error})")


def read_fixations(path: Path) -> torch.Tensor:
    """The fixated pixels from an image or a MATLAB file with the variable `eyeMap`: `(height, width)`, boolean.

    Raises:
        InputError: it is missing or damaged.
    """
    if path.suffix.lower() == ".mat":
        return torch.from_numpy(_read_eye_map(path) > 0)
    values = read_map(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return (values > 0) & (values > values.max() / 2)  # above what JPEG smears
    return values > 0  # some write 1, or how many looked, for what others write 255 for


def _read_eye_map(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["eyeMap"])
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; one MATLAB file of fixations a frame is expected") from None
    except NotImplementedError:
        raise InputError(f"{path} is a MATLAB file of version 7.3; save it as version 5 to 7 (`save -v7`)") from None
    except Exception as error:  # damaged files make scipy raise many kinds
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read as a MATLAB file: it is damaged or cut short ({reason})") from None
    if "eyeMap" not in content:
        raise InputError(f"{path} has no variable `eyeMap`, the map of fixated pixels")
    eye_map = content["eyeMap"]
    eye_map = eye_map.toarray() if hasattr(eye_map, "toarray") else np.asarray(eye_map)  # it may be sparse
    if eye_map.ndim != 2 or eye_map.size == 0 or eye_map.dtype.kind not in "biuf":
        raise InputError(f"{path}: `eyeMap` has shape {eye_map.shape} and type {eye_map.dtype}; a map is expected")
    return eye_map


def points_columns(path: Path) -> list[str]:
    """The names of a table's columns, from its first line.

    Raises:
        InputError: the table cannot be read.
    """
    import pandas

    try:
        return list(pandas.read_csv(path, nrows=0).columns)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a CSV file ({error})") from None


def read_points(path: str, name_column: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A table of points, by video or image.

    Args:
        path: a CSV file, also gzipped.
        name_column: the column that tells the video or image; a file name counts without its suffix.
        columns: the columns of numbers wanted, an empty field being NaN. The names of observers in a column `observer`
            are numbered from 0, an empty one being -1.

    Returns:
        by name, `(points, columns)`, float64.

    Raises:
        InputError: the table is missing or damaged, lacks a column, or has something else than numbers.
    """
    return _read_points(path, name_column, columns, changed_at(path))


@lru_cache(maxsize=4)
def _read_points(path: str, name_column: str, columns: tuple[str, ...], changed: int) -> dict[str, np.ndarray]:
    import pandas

    present = points_columns(Path(path))
    for column in (name_column, *columns):
        if column not in present:
            raise InputError(f"{path} has no column {column!r}; its columns are {', '.join(present)}")
    try:
        table = pandas.read_csv(path, usecols=[name_column, *columns], dtype={name_column: str, "observer": str})
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a CSV file: it is damaged or cut short ({error})") from None
    for column in columns:
        if column == "observer":
            table[column] = pandas.factorize(table[column], sort=True)[0].astype(np.float64)
            continue
        try:
            table[column] = pandas.to_numeric(table[column]).astype(np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: column {column!r} must hold numbers ({error}, counted from 0)") from None
    names = table[name_column].map(media_name, na_action="ignore")
    return {name: group.to_numpy() for name, group in table[list(columns)].groupby(names)}


def media_name(file: str) -> str:
    """The name of a video or image file without its suffix; other dots belong to the name."""
    stem, suffix = os.path.splitext(file)
    return stem if suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES else file


def move_points(fixations: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Fixated pixels `(h, w)`, boolean, at another size `(height, width)`: every one moves, none is interpolated."""
    if tuple(fixations.shape) == tuple(size):
        return fixations
    places = fixations.nonzero()  # n 2
    ratio = torch.tensor(size, dtype=torch.float64) / torch.tensor(fixations.shape, dtype=torch.float64)
    rows, columns = ((places + 0.5) * ratio).long().unbind(dim=1)
    moved = torch.zeros(tuple(size), dtype=torch.bool)
    moved[rows, columns] = True
    return moved


def count_points(points: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """How many points fall on each pixel: `(height, width)`, float32.

    Args:
        points: `(n, 2)`, x and y in pixels, inside the picture; pixel 0 reaches from 0 to 1.
        size: height and width.
    """
    counts = torch.zeros(tuple(size))
    columns, rows = torch.from_numpy(np.floor(points)).long().unbind(dim=1)
    counts.index_put_((rows, columns), torch.ones(len(points)), accumulate=True)
    return counts
