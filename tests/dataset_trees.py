"""Small trees of every layout that the data sets come in, whose files tell which frame they belong to.

Frame `i` of any video shows `media_files.picture(i)`; its map has its peak, and its fixation lies, at `place(i)`.
"""

import wave
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from media_files import make_video, picture, tone_bursts
from PIL import Image
from scipy.io import savemat

WIDTH, HEIGHT = 48, 32
FOLDERS = {"AVAD": "AVAD", "Coutrot1": "Coutrot_db1", "Coutrot2": "Coutrot_db2", "DIEM": "DIEM", "ETMD": "ETMD_av"}
FOLDERS["SumMe"] = "SumMe"


def place(index: int, width: int = WIDTH, height: int = HEIGHT) -> tuple[int, int]:
    """Row and column where people look in frame `index`, another place for each of the first hundred frames."""
    return 4 + index * 5 % (height - 8), 4 + index * 7 % (width - 8)


def truth_map(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """`(height, width)`, uint8: the map of frame `index`."""
    row, column = place(index, width, height)
    y, x = np.mgrid[:height, :width]
    return (255 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / 8)).round().astype(np.uint8)


def looked_at(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """`(height, width)`, uint8, one where people look in frame `index`."""
    looks = np.zeros((height, width), np.uint8)
    looks[place(index, width, height)] = 1
    return looks


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))


def save_sound(path: Path, seconds: float, rate: int = 16000) -> None:
    """A WAV file of tone bursts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = tone_bursts(np.arange(round(seconds * rate)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def save_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")


def audio_visual(
    root: Path,
    dataset: str = "AVAD",
    lists: Mapping[tuple[str, int], Mapping[str, int]] | None = None,
    fps: float = 25.0,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """An audio-visual set; `lists` gives each (split, fold)'s videos with their numbers of frames."""
    folder = FOLDERS[dataset]
    lists = {("train", 1): {"clip one": 6, "clip2": 4}, ("test", 1): {"clip_3": 5}} if lists is None else lists
    for (split, fold), videos in lists.items():
        number = "" if dataset == "DIEM" else f"_{fold}"
        file = root / "fold_lists" / f"{folder}_list_{split}{number}_fps.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name} {frames} {fps:f}\n" for name, frames in videos.items()))
        for name, frames in videos.items():
            annotations = root / "annotations" / folder / name
            for i in range(frames):
                save_image(root / "video_frames" / folder / name / f"img_{i + 1:05d}.jpg", picture(i, *size))
                save_image(annotations / "maps" / f"eyeMap_{i + 1:05d}.jpg", truth_map(i, *size))
                savemat(annotations / f"fixMap_{i + 1:05d}.mat", {"eyeMap": looked_at(i, *size)})
            save_sound(root / "video_audio" / folder / name / f"{name}.wav", frames / fps)
    return root


def dhf1k_frames(root: Path, numbers: Mapping[int, int], maps: bool = True) -> Path:
    """DHF1K as people unpack it: frames/601/1.png and maps/601/0001.png; `numbers` gives the videos' frames."""
    for number, frames in numbers.items():
        for i in range(frames):
            save_image(root / "frames" / str(number) / f"{i + 1}.png", picture(i, WIDTH, HEIGHT))
            if maps:
                save_image(root / "maps" / str(number) / f"{i + 1:04d}.png", truth_map(i))
    return root


def dhf1k_annotation(root: Path, numbers: Mapping[int, int], frames_in: str) -> Path:
    """DHF1K's own layout, its frames in `"images"` beside the maps, in `"frames"`, or in `"video"` as AVI files."""
    for number, frames in numbers.items():
        annotation = root / "annotation" / f"{number:04d}"
        for i in range(frames):
            save_image(annotation / "maps" / f"{i + 1:04d}.png", truth_map(i))
            save_image(annotation / "fixation" / f"{i + 1:04d}.png", 255 * looked_at(i))
            if frames_in == "images":
                save_image(annotation / "images" / f"{i + 1:04d}.png", picture(i, WIDTH, HEIGHT))
            elif frames_in == "frames":
                save_image(root / "frames" / f"{number:04d}" / f"{i + 1}.png", picture(i, WIDTH, HEIGHT))
        if frames_in == "video":
            (root / "video").mkdir(exist_ok=True)
            make_video(
                root / "video" / f"{number:03d}.AVI", frames, frame_rate=30, size=(WIDTH, HEIGHT), codec="mpeg4",
                sound=None,
            )  # fmt: skip
    return root


def action_set(root: Path) -> Path:
    """Hollywood-2 or UCF Sports, the files named after their videos."""
    for part, name, frames in (
        ("training", "clip00002", 4),
        ("training", "clip00010", 3),
        ("testing", "clip00001", 5),
    ):
        for i in range(frames):
            file = f"{name}_{i + 1:05d}.png"
            save_image(root / part / name / "images" / file, picture(i, WIDTH, HEIGHT))
            save_image(root / part / name / "maps" / file, truth_map(i))
            save_image(root / part / name / "fixation" / file, looked_at(i))  # ones, not 255
    return root


def osie(root: Path, numbers: Sequence[int] = (1001, 1002, 1601), width: int = 160) -> Path:
    """OSIE, smaller than its originals of 800x600; each image is dark, with one bright dot, where people look."""
    height = width * 3 // 4
    rows = []
    for number in numbers:
        x, y = dot(number)
        column, row = int(x * width // 800), int(y * width // 800)
        pixels = np.full((height, width, 3), 40, np.uint8)
        pixels[row - 1 : row + 2, column - 1 : column + 2] = 255
        save_image(root / "images" / f"{number}.jpg", pixels)
        rows += [(f"{number}.jpg", observer, 0, x, y, 200) for observer in range(3)]
    save_table(root / "fixations.csv", ("image", "observer", "order", "x", "y", "duration_ms"), rows)
    return root


def dot(number: int) -> tuple[float, float]:
    """Where people look in an image of OSIE: x and y in its original of 800x600, the middle of a stored pixel."""
    return 352.5 + 20 * (number % 7), 262.5 + 20 * (number % 5)


def own_folder(root: Path, truth: str, videos: Mapping[str, int] | None = None) -> Path:
    """Somebody's own videos, with `truth` a table by `"frame"` or `"time_s"`, or `"maps"`."""
    videos = {"walk.v2": 6, "street": 4} if videos is None else videos
    (root / "videos").mkdir(parents=True, exist_ok=True)
    rows = []
    for name, frames in videos.items():
        make_video(root / "videos" / f"{name}.mp4", frames, size=(WIDTH, HEIGHT))
        for i in range(frames):
            row, column = place(i)
            rows.append((name, column + 0.5, row + 0.5, i if truth == "frame" else (i + 0.3) / 25))
            if truth == "maps":
                save_image(root / "maps" / name / f"m{i + 8}.png", truth_map(i))  # m9 comes before m10
                save_image(root / "fixations" / name / f"m{i + 8}.png", 255 * looked_at(i))
    if truth != "maps":
        save_table(root / "fixations.csv", ("video", "x", "y", truth), rows)
    return root
