"""Puts frames of videos under each other, one row a video, to show a prediction in one picture.

python examples/contact_sheet.py --output sheet.png clip.mp4 saliency/clip_overlay.mp4
"""

import argparse
from pathlib import Path

from PIL import Image

from diffsal_diffusers.media.video import open_video


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="a .png or .jpg")
    parser.add_argument("--times", type=float, nargs="+", default=[0.5, 2.0, 4.0], help="seconds of the columns")
    parser.add_argument("--width", type=int, default=320, help="width of one frame in pixels")
    args = parser.parse_args()

    rows = []
    for path in args.videos:
        row = []
        for time in args.times:
            with open_video(path, start=time, duration=1.0) as video:
                frame = Image.fromarray(next(iter(video)).pixels)
            row.append(frame.resize((args.width, round(args.width * frame.height / frame.width))))
        rows.append(row)
    heights = [row[0].height for row in rows]
    sheet = Image.new("RGB", (len(args.times) * args.width, sum(heights)))
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            sheet.paste(frame, (j * args.width, sum(heights[:i])))
    sheet.save(args.output)


if __name__ == "__main__":
    main()
