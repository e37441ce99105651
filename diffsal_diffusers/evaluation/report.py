"""What an evaluation leaves behind: scores.json, per_video.csv, a table in Markdown and pages of pictures."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..media.writers import complete_path
from ..metrics import METRICS
from .protocol import HUMANS, mean
from .runner import file_name, write_json, write_text

PAGE_VIDEOS = 8  # on a page of pictures

# Table 6 of the DiffSal paper (CVPR 2024): CC, NSS, AUC-J, SIM.
PUBLISHED_METRICS = ("cc", "nss", "auc_judd", "sim")
PUBLISHED = {
    "DIEM": {
        "STAViS": (0.579, 2.26, 0.883, 0.482),
        "ViNet": (0.632, 2.53, 0.899, 0.498),
        "TSFP-Net": (0.651, 2.62, 0.906, 0.527),
        "CASP-Net": (0.655, 2.61, 0.906, 0.543),
        "DiffSal": (0.660, 2.65, 0.907, 0.543),
    },
    "Coutrot1": {
        "STAViS": (0.472, 2.11, 0.868, 0.393),
        "ViNet": (0.56, 2.73, 0.889, 0.425),
        "TSFP-Net": (0.571, 2.73, 0.895, 0.447),
        "CASP-Net": (0.561, 2.65, 0.889, 0.456),
        "DiffSal": (0.638, 3.20, 0.901, 0.515),
    },
    "Coutrot2": {
        "STAViS": (0.734, 5.28, 0.958, 0.511),
        "ViNet": (0.754, 5.95, 0.951, 0.493),
        "TSFP-Net": (0.743, 5.31, 0.959, 0.528),
        "CASP-Net": (0.788, 6.34, 0.963, 0.585),
        "DiffSal": (0.835, 6.61, 0.964, 0.625),
    },
    "AVAD": {
        "STAViS": (0.608, 3.18, 0.919, 0.457),
        "ViNet": (0.674, 3.77, 0.927, 0.491),
        "TSFP-Net": (0.704, 3.77, 0.932, 0.521),
        "CASP-Net": (0.691, 3.81, 0.933, 0.528),
        "DiffSal": (0.738, 4.22, 0.935, 0.571),
    },
    "ETMD": {
        "STAViS": (0.569, 2.94, 0.931, 0.425),
        "ViNet": (0.571, 3.08, 0.928, 0.406),
        "TSFP-Net": (0.576, 3.07, 0.932, 0.428),
        "CASP-Net": (0.620, 3.34, 0.940, 0.478),
        "DiffSal": (0.652, 3.66, 0.943, 0.506),
    },
    "SumMe": {
        "STAViS": (0.422, 2.04, 0.888, 0.337),
        "ViNet": (0.463, 2.41, 0.897, 0.343),
        "TSFP-Net": (0.464, 2.30, 0.894, 0.360),
        "CASP-Net": (0.499, 2.60, 0.907, 0.387),
        "DiffSal": (0.572, 3.14, 0.921, 0.447),
    },
}


def dataset_means(folds: Mapping[str, Sequence[Mapping]], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """The data set's scores by predictor and metric: means over videos, then over folds.

    Args:
        folds: the results of the videos, by fold.
        metrics: names of metrics.
    """
    names = dict.fromkeys(name for results in folds.values() for result in results for name in result["scores"])

    def of_fold(results: Sequence[Mapping], name: str, metric: str) -> float:
        return mean(result["scores"][name][metric] for result in results if name in result["scores"])

    return {
        name: {metric: mean(of_fold(results, name, metric) for results in folds.values()) for metric in metrics}
        for name in names
    }


def markdown_table(
    dataset: str | None,
    scores: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
    metrics: Sequence[str],
) -> str:
    """The table in Markdown: the published rows for this data set, where there are any, then ours.

    Args:
        dataset: its name; `None` where ours are not to be compared with the published ones.
        scores: by predictor and metric.
        titles: what each predictor is called in the table.
        metrics: the columns.
    """
    lines = [
        "| " + " | ".join(["method", *(heading(metric) for metric in metrics)]) + " |",
        "|---|" + "---:|" * len(metrics),
    ]
    for method, values in PUBLISHED.get(dataset or "", {}).items():
        published = dict(zip(PUBLISHED_METRICS, values, strict=True))
        lines.append(_row(f"{method} (published)", [published.get(metric, math.nan) for metric in metrics]))
    for name, by_metric in scores.items():
        lines.append(_row(titles.get(name, name), [by_metric[metric] for metric in metrics]))
    return "\n".join(lines)


def heading(metric: str) -> str:
    """A column's title, with an arrow towards the better."""
    return f"{METRICS[metric].title} {'↑' if METRICS[metric].higher_is_better else '↓'}"


def _row(title: str, values: Sequence[float]) -> str:
    return "| " + " | ".join([title, *("-" if math.isnan(value) else f"{value:.3f}" for value in values)]) + " |"


def write_report(
    folder: Path,
    dataset: str | None,
    folds: Mapping[str, Sequence[Mapping]],
    titles: Mapping[str, str],
    metrics: Sequence[str],
    settings: Mapping[str, object],
) -> str:
    """Writes `scores.json`, `per_video.csv`, `table.md`, `examples.png` and `worst.png`.

    Returns:
        the table.
    """
    scores = dataset_means(folds, metrics)
    write_json(
        folder / "scores.json",
        {
            "settings": settings,
            "scores": {name: {m: none_for_nan(v) for m, v in by.items()} for name, by in scores.items()},
            "folds": {
                fold: {
                    name: {m: none_for_nan(v) for m, v in by.items()}
                    for name, by in dataset_means({fold: results}, metrics).items()
                }
                for fold, results in folds.items()
            },
            "videos": {fold: sum(result["frames"] > 0 for result in results) for fold, results in folds.items()},
            "skipped": sum(len(result["skipped"]) for results in folds.values() for result in results),
        },
    )

    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["fold", "video", "predictor", "frames", *metrics])
    for fold, results in folds.items():
        for result in results:
            for name, by in result["scores"].items():
                writer.writerow([fold, result["video_id"], name, result["frames"], *(repr(by[m]) for m in metrics)])
    write_text(folder / "per_video.csv", table.getvalue())

    markdown = markdown_table(dataset, scores, titles, metrics)
    write_text(folder / "table.md", markdown + "\n")
    write_pages(folder, [result for results in folds.values() for result in results], titles, metrics[0])
    return markdown


def none_for_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def write_pages(folder: Path, results: Sequence[Mapping], titles: Mapping[str, str], metric: str) -> None:
    """Puts kept pictures under each other: `examples.png`, videos spread over the data set, and `worst.png`, those on
    which the first predictor does worst by one metric."""
    first, sign = next(iter(titles)), 1 if METRICS[metric].higher_is_better else -1
    # Each video once, also where it is in two folds.
    scores = {result["video_id"]: result["scores"][first][metric] for result in results if result["frames"]}
    worst = sorted((video for video, score in scores.items() if not math.isnan(score)), key=lambda v: sign * scores[v])
    spread = list(scores)[:: max(-(-len(scores) // PAGE_VIDEOS), 1)]
    columns = ["ground truth", *(title for name, title in titles.items() if name != HUMANS)]
    for name, chosen in (("examples", spread), ("worst", worst[:PAGE_VIDEOS])):
        (folder / f"{name}.png").unlink(missing_ok=True)
        strips = []
        for video_id in chosen:
            file = folder / "examples" / f"{file_name(video_id)}.jpg"
            if file.exists():
                with Image.open(file) as image:
                    strips.append(
                        (f"{METRICS[metric].title} {scores[video_id]:.3f}: {video_id}", image.convert("RGB"))
                    )
        if strips:
            with complete_path(folder / f"{name}.png") as part:
                page(strips, columns).save(part)


def page(strips: Sequence[tuple[str, Image.Image]], columns: Sequence[str]) -> Image.Image:
    """Pictures with a title each, under each other, and titles over their other columns."""
    margin = 22
    whole = Image.new("RGB", (max(s.width for _, s in strips), sum(s.height + margin for _, s in strips)), "white")
    draw, top = ImageDraw.Draw(whole), 0
    for title, strip in strips:
        width = strip.width / (1 + len(columns))
        for place, text in enumerate([title, *columns]):
            while draw.textlength(text, font_size=13) > width - 8:
                text = text[:-1]
            draw.text((place * width + 4, top + 4), text, fill="black", font_size=13)
        whole.paste(strip, (0, top + margin))
        top += strip.height + margin
    return whole
