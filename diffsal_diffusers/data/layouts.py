"""How the data sets lie on disk: for each, the rows of a split, from lists and directory listings."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ..errors import InputError
from ..media.video import IMAGE_SUFFIXES
from .files import VIDEO_SUFFIXES, file_names, media_name, natural_key, numbered_images, points_columns
from .recordings import FrameFolder, StillImage, VideoFile
from .registry import SALIENCY_DATASETS, register_dataset
from .synthetic import SyntheticScene

logger = logging.get_logger(__name__)

Rows = list[dict[str, Any]]

# The folders of the audio-visual sets, as the field names them.
AUDIO_VISUAL_FOLDERS = {
    "AVAD": "AVAD",
    "Coutrot1": "Coutrot_db1",
    "Coutrot2": "Coutrot_db2",
    "DIEM": "DIEM",
    "ETMD": "ETMD_av",
    "SumMe": "SumMe",
}
AUDIO_VISUAL_LAYOUT = (
    "fold_lists/{0}_list_{{train,test}}_{{1,2,3}}_fps.txt (DIEM_list_{{train,test}}_fps.txt), "
    "video_frames/{0}/VIDEO/img_00001.jpg, video_audio/{0}/VIDEO/VIDEO.wav, "
    "annotations/{0}/VIDEO/maps/eyeMap_00001.jpg and annotations/{0}/VIDEO/fixMap_00001.mat"
)
DHF1K_NUMBERS = {"train": range(1, 601), "validation": range(601, 701), "test": range(701, 1001)}
DHF1K_FPS = 30.0
# Frames per second of the sources; only a pipeline's times depend on them, these sets have no sound.
ACTION_SETS = {"Hollywood2": 25.0, "UCFSports": 10.0}
OSIE_NUMBERS = {"train": range(1001, 1601), "validation": range(1601, 1701)}
OSIE_FRAMES, OSIE_FPS = 16, 25.0
OSIE_LAYOUT = (
    "images/1001.jpg and so on, and fixations.csv or fixations.csv.gz with the columns image, x and y, and perhaps "
    "observer"
)
FOLDER_SPLITS = ("train", "validation", "test")
SYNTHETIC_SCENES = {"train": (0, 2000), "validation": (1_000_000, 40), "test": (2_000_000, 100)}  # first seed, number
SYNTHETIC_FRAMES, SYNTHETIC_FPS = 50, 25.0


def _missing(path: Path, dataset: str, more: str = "") -> InputError:
    return InputError(f"{path} is missing{more}; {dataset} is expected as {SALIENCY_DATASETS[dataset].layout}")


def _report_absent(dataset: str, split: str, there: int, expected: int) -> None:
    if there < expected:
        logger.warning(f"{dataset}: {there} of the {expected} of the {split} split are there")


def _checked_name(name: str, source: str) -> str:
    """A video's name out of a list, which becomes part of paths."""
    if ".." in name or re.search(r"[/\\\0]", name) or name in ("", ".") or Path(name).is_absolute():
        raise InputError(f"{source}: {name!r} is no name of a video; it must have no `..`, slash or backslash in it")
    return name


def _read_lines(path: Path) -> Iterable[tuple[str, str]]:
    """The lines of a list that are not empty, each with where it is."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of videos ({error})") from None
    lines = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
    lines = [(where, line) for where, line in lines if line]
    if not lines:
        raise InputError(f"{path} is empty; a list of videos is expected")
    return lines


def _register_audio_visual(dataset: str, folder: str) -> None:
    @register_dataset(
        dataset,
        open_entry=FrameFolder,
        layout=AUDIO_VISUAL_LAYOUT.format(folder),
        splits=("train", "test"),
        folds=(1,) if dataset == "DIEM" else (1, 2, 3),
    )
    def list_audio_visual(root: Path, split: str, fold: int) -> Rows:
        """Rows of the videos in a fold's list."""
        number = "" if dataset == "DIEM" else f"_{fold}"
        file = root / "fold_lists" / f"{folder}_list_{split}{number}_fps.txt"
        parts = (root / part / folder for part in ("video_frames", "video_audio", "annotations"))
        for path in (file.parent, file, *parts):
            if not path.exists():
                raise _missing(path, dataset)
        rows, silent = [], []
        for where, line in _read_lines(file):
            video, num_frames, fps = _parse_line(where, line)
            if any(row["video_id"] == video for row in rows):
                raise InputError(f"{where}: {video} is listed twice")
            audio = root / "video_audio" / folder / video / f"{video}.wav"
            if not audio.exists():
                silent.append(audio)
            rows.append(
                {
                    "video_id": video,
                    "num_frames": num_frames,
                    "fps": fps,
                    "audio": str(audio) if audio.exists() else None,
                    "first_number": 1,
                    **_audio_visual_files(root, dataset, folder, video),
                }
            )
        if silent:
            logger.warning(
                f"{dataset}: {len(silent)} of {len(rows)} videos have no sound file, the first is {silent[0]}; they "
                "are taken as silent"
            )
        return rows


def _parse_line(where: str, line: str) -> tuple[str, int, float]:
    parts = line.rsplit(maxsplit=2)
    try:
        video, num_frames, fps = parts[0], int(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        video, num_frames, fps = "", 0, 0.0
    if num_frames < 1 or not 0 < fps < 1e6:
        raise InputError(f"{where}: `VIDEO FRAMES FPS` is expected, as in `clip_1 385 24.999750`, got {line!r}")
    return _checked_name(video, where), num_frames, fps


def _audio_visual_files(root: Path, dataset: str, folder: str, video: str) -> dict[str, Any]:
    frames, annotations = (root / part / folder / video for part in ("video_frames", "annotations"))
    for path in (frames, frames / "img_00001.jpg", annotations):
        if not path.exists():
            raise _missing(path, dataset)
    has_maps = (annotations / "maps").is_dir()
    has_fixations = (annotations / "fixMap_00001.mat").exists()
    if not has_maps and not has_fixations:
        raise _missing(annotations / "maps", dataset)
    return {
        "frames": str(frames),
        "frames_name": "img_%05d.jpg",
        "maps": str(annotations / "maps") if has_maps else None,
        "maps_name": "eyeMap_%05d.jpg" if has_maps else None,
        "fixations": str(annotations) if has_fixations else None,
        "fixations_name": "fixMap_%05d.mat" if has_fixations else None,
    }


for _dataset, _folder in AUDIO_VISUAL_FOLDERS.items():
    _register_audio_visual(_dataset, _folder)


@register_dataset(
    "DHF1K",
    open_entry=lambda entry: FrameFolder(entry) if entry["video"] is None else VideoFile(entry),
    layout=(
        "frames/VIDEO/1.png and maps/VIDEO/0001.png, or annotation/0601/{maps,fixation}/0001.png with frames in "
        "frames/VIDEO, annotation/0601/images or video/601.AVI"
    ),
    splits=("train", "validation", "test"),
)
def list_dhf1k(root: Path, split: str, fold: None) -> Rows:
    """Rows of DHF1K in either layout; a video's number, not its place, tells the split."""
    annotations = _by_number(root / "annotation")
    frames, videos, maps = (_by_number(root / part) for part in ("frames", "video", "maps"))
    fixations = _by_number(root / "fixation") or _by_number(root / "fixations")
    if annotations:
        maps |= {number: path / "maps" for number, path in annotations.items()}
        fixations |= {number: path / "fixation" for number, path in annotations.items()}
        frames = {n: path / "images" for n, path in annotations.items() if (path / "images").is_dir()} | frames
    wanted = DHF1K_NUMBERS[split]
    numbers = [number for number in wanted if number in frames or number in videos]
    if not numbers:
        folder = root / "frames"
        path = folder / str(wanted[0]) if folder.is_dir() else folder
        raise _missing(path, "DHF1K", f", and none of the videos {wanted[0]} to {wanted[-1]} is there")
    rows = []
    for number in numbers:
        expected = root / "annotation" / f"{number:04d}" / "maps"
        if not annotations:
            expected = root / "maps" / (frames.get(number) or videos[number]).stem
        truth = maps.get(number, expected)
        if not truth.is_dir() or (found := numbered_images(truth)) is None:
            if split == "test":
                raise InputError(
                    f"{truth} is missing: the maps of DHF1K's test videos, 701 to 1000, are not public; "
                    "the split 'validation' has maps"
                )
            raise _missing(truth, "DHF1K")
        row = {"fps": DHF1K_FPS, "maps": str(truth), "maps_name": found.name}
        if number in frames:
            folder = frames[number]
            row |= _numbered_frames(folder, found.last, "DHF1K")
            if row["first_number"] != found.first:
                raise InputError(
                    f"{folder} begins with number {row['first_number']}, and {truth} with {found.first}: they must "
                    "count alike"
                )
            row["video_id"] = folder.parent.name if folder.name == "images" else folder.name
        else:
            row |= {"video_id": videos[number].stem, "video": str(videos[number])}
            row |= {"num_frames": found.last - found.first + 1, "first_number": found.first}
        rows.append(row | _fixation_images(fixations.get(number)))
    _report_absent("DHF1K", split, len(numbers), len(wanted))
    return rows


def _by_number(folder: Path) -> dict[int, Path]:
    """What lies in a folder by its number, as `0601`, `601` or `601.AVI`."""
    if not folder.is_dir():
        return {}
    return {int(stem): folder / name for name in file_names(folder) if (stem := media_name(name)).isdecimal()}


def _numbered_frames(folder: Path, last: int, dataset: str) -> dict[str, Any]:
    """Columns for a folder of frames; what comes behind the last map has no ground truth and does not count."""
    found = numbered_images(folder) if folder.is_dir() else None
    if found is None:
        raise _missing(folder, dataset, " or has no numbered images")
    if last < found.first:
        raise InputError(f"{folder}: the frames begin with number {found.first}, but the maps end with {last}")
    return {
        "frames": str(folder),
        "frames_name": found.name,
        "first_number": found.first,
        "num_frames": min(found.last, last) - found.first + 1,
    }


def _fixation_images(folder: Path | None) -> dict[str, Any]:
    found = numbered_images(folder) if folder is not None and folder.is_dir() else None
    return {} if found is None else {"fixations": str(folder), "fixations_name": found.name}


def _register_action_set(dataset: str, fps: float) -> None:
    @register_dataset(
        dataset,
        open_entry=FrameFolder,
        layout="{training,testing}/VIDEO/images/*.png, maps/*.png and fixation/*.png, numbered alike",
        splits=("train", "test"),
    )
    def list_action_set(root: Path, split: str, fold: None) -> Rows:
        """Rows of Hollywood-2 or UCF Sports."""
        part = root / {"train": "training", "test": "testing"}[split]
        videos = [name for name in file_names(part) if (part / name).is_dir()] if part.is_dir() else []
        if not videos:
            raise _missing(part, dataset, " or empty")
        rows = []
        for video in videos:
            maps = part / video / "maps"
            if not maps.is_dir() or (found := numbered_images(maps)) is None:
                raise _missing(maps, dataset, " or has no numbered images")
            row = {"video_id": video, "fps": fps, "maps": str(maps), "maps_name": found.name}
            row |= _numbered_frames(part / video / "images", found.last, dataset)
            rows.append(row | _fixation_images(part / video / "fixation"))
        return rows


for _dataset, _fps in ACTION_SETS.items():
    _register_action_set(_dataset, _fps)


@register_dataset("OSIE", open_entry=StillImage, layout=OSIE_LAYOUT, splits=tuple(OSIE_NUMBERS))
@register_dataset(
    "OSIE-still", open_entry=partial(StillImage, moving=False), layout=OSIE_LAYOUT, splits=tuple(OSIE_NUMBERS)
)
@register_dataset(
    "OSIE-voiced", open_entry=partial(StillImage, voiced=True), layout=OSIE_LAYOUT, splits=tuple(OSIE_NUMBERS)
)
def list_osie(root: Path, split: str, fold: None) -> Rows:
    """Rows of OSIE, whose still images become clips; 1001 to 1600 are the training split, 1601 to 1700 validation.

    As `OSIE`, a camera moves over the images; as `OSIE-still`, it shows the whole image all the time. `OSIE-voiced` is
    `OSIE` with a sound that has nothing to do with the picture: a network learns from it not to believe every sound.
    """
    points = _points_file(root)
    if points is None:
        raise _missing(root / "fixations.csv", "OSIE")
    _require_columns(points, ("image", "x", "y"))
    wanted = OSIE_NUMBERS[split]
    images = {n: path for n, path in _by_number(root / "images").items() if path.suffix.lower() in IMAGE_SUFFIXES}
    images = [images[number] for number in wanted if number in images]
    if not images:
        raise _missing(root / "images" / f"{wanted[0]}.jpg", "OSIE")
    _report_absent("OSIE", split, len(images), len(wanted))
    common = {"num_frames": OSIE_FRAMES, "fps": OSIE_FPS, "points": str(points)}
    return [{"video_id": path.stem, "video": str(path), **common} for path in images]


def _points_file(root: Path) -> Path | None:
    files = (root / name for name in ("fixations.csv", "fixations.csv.gz"))
    return next((file for file in files if file.exists()), None)


def _require_columns(points: Path, columns: Iterable[str], one_of: tuple[str, ...] = ()) -> None:
    present = points_columns(points)
    lacking = [column for column in columns if column not in present]
    if one_of and not set(one_of) & set(present):
        lacking.append(" or ".join(one_of))
    if lacking:
        raise InputError(f"{points} has no column {lacking[0]}; its columns are {', '.join(present)}")


@register_dataset(
    "folder",
    open_entry=VideoFile,
    layout=(
        "videos/NAME.mp4 and either fixations.csv with the columns video, x, y (pixels of the video) and frame (from "
        "0) or time_s, or maps/NAME/*.png, one a frame, and perhaps fixations/NAME/*.png; train.txt, validation.txt "
        "and test.txt with names of videos make splits"
    ),
    splits=FOLDER_SPLITS,
)
def list_folder(root: Path, split: str, fold: None) -> Rows:
    """Rows of anybody's videos."""
    if not (root / "videos").is_dir():
        raise _missing(root / "videos", "folder")
    videos: dict[str, Path] = {}
    for name in file_names(root / "videos"):
        path = root / "videos" / name
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        if path.stem in videos:
            raise InputError(f"{videos[path.stem]} and {path.name} have one name; a video's name must be its own")
        videos[path.stem] = path
    if not videos:
        raise _missing(root / "videos" / "NAME.mp4", "folder")

    points = _points_file(root)
    if points is not None:
        _require_columns(points, ("video", "x", "y"), one_of=("frame", "time_s"))
    elif not (root / "maps").is_dir():
        raise _missing(root / "maps", "folder", ", and so is fixations.csv")
    rows = []
    for name in _folder_split(root, split, videos):
        row = {"video_id": name, "video": str(videos[name]), "points": None if points is None else str(points)}
        maps, fixations = root / "maps" / name, root / "fixations" / name
        if maps.is_dir():
            images = [image for image in file_names(maps) if image.lower().endswith(IMAGE_SUFFIXES)]
            if not images:
                raise _missing(maps / "0001.png", "folder")
            row |= {"maps": str(maps), "num_frames": len(images)}
            if fixations.is_dir():
                marked = [media_name(name) for name in file_names(fixations)]
                if marked != [media_name(image) for image in images]:
                    raise InputError(f"{fixations} must have an image of the same name for each of {maps}")
                row["fixations"] = str(fixations)
        elif points is None:
            raise _missing(maps, "folder", ", and so is fixations.csv")
        rows.append(row)
    return rows


def _folder_split(root: Path, split: str, videos: dict[str, Path]) -> list[str]:
    """The names of a split's videos: those in its list; without any lists, all are for testing."""
    lists = [name for name in FOLDER_SPLITS if (root / f"{name}.txt").exists()]
    if not lists:
        if split != "test":
            raise InputError(
                f"{root / split}.txt is missing, so there is no split {split!r}: without lists of names, all videos "
                "are in the split 'test'"
            )
        return sorted(videos, key=natural_key)
    if split not in lists:
        raise InputError(f"{root / split}.txt is missing, so there is no split {split!r}; there is {', '.join(lists)}")
    names: list[str] = []
    for where, line in _read_lines(root / f"{split}.txt"):
        name = _checked_name(media_name(line), where)
        if name in names:
            raise InputError(f"{where}: {name} is listed twice")
        if name not in videos:
            raise InputError(f"{where}: {root / 'videos' / name}.mp4 is missing, or with another suffix of a video")
        names.append(name)
    return names


def _register_synthetic(dataset: str, **variant: bool) -> None:
    @register_dataset(
        dataset,
        open_entry=lambda entry: SyntheticScene(entry["seed"], entry["num_frames"], entry["fps"], **variant),
        layout="nothing: the scenes are generated",
        splits=tuple(SYNTHETIC_SCENES),
        needs_root=False,
    )
    def list_synthetic(root: None, split: str, fold: None) -> Rows:
        """Rows of generated scenes."""
        first, number = SYNTHETIC_SCENES[split]
        common = {"num_frames": SYNTHETIC_FRAMES, "fps": SYNTHETIC_FPS}
        return [{"video_id": f"scene_{seed:07d}", "seed": seed, **common} for seed in range(first, first + number)]


_register_synthetic("synthetic")
_register_synthetic("synthetic-silent", silent=True)
_register_synthetic("synthetic-shuffled", shuffled_audio=True)
