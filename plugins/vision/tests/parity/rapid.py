"""What RapidOCR reads in pictures: `rapid.py FOLDER PACKAGE` writes a page of its own there, reads every PNG of it, and prints
{name: [[box, text, score], ...]} as JSON. Pictures of scikit-image are added when its wheel lies in the folder. PACKAGE is
`rapidocr_onnxruntime`, which has PP-OCRv4, or `rapidocr`, which has PP-OCRv6."""

import json
import math
import pathlib
import sys
import zipfile

from PIL import Image, ImageDraw, ImageFont

folder, package = pathlib.Path(sys.argv[1]), sys.argv[2]

if package == "rapidocr_onnxruntime":
    from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR()

    def read(path: pathlib.Path) -> list:
        return engine(str(path))[0] or []
else:
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "error"})

    def read(path: pathlib.Path) -> list:
        said = engine(str(path))
        return [] if said.boxes is None else list(zip(said.boxes.tolist(), said.txts, said.scores))


for wheel in folder.glob("scikit_image*.whl"):
    with zipfile.ZipFile(wheel) as file:
        for name in ("page", "text"):
            (folder / f"{name}.png").write_bytes(file.read(f"skimage/data/{name}.png"))

TEXT = """Invoice 2024-0317
The quick brown fox jumps over the lazy dog.
Item            Quantity        Price
Blue widgets            12      EUR 144.50
Shipping and handling    1      EUR 9.95
Payment is due within 30 days of receipt (net).
See https://example.com/terms for the terms.
Thank you for your business!"""


def rendered() -> Image.Image:
    page = Image.new("RGB", (1100, 800), "white")
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(TEXT.splitlines()):
        size = 48 if row == 0 else 28
        draw.text((70, 60 + row * 84), line, fill=(20, 20, 40), font=ImageFont.load_default(size))
    return page


page = rendered()
page.save(folder / "rendered.png")
page.rotate(4, expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC).save(folder / "leaning.png")
page.rotate(180).save(folder / "on_its_head.png")
page.crop((60, 130, 760, 190)).save(folder / "one_line.png")
page.resize((2600, 1890), Image.Resampling.BICUBIC).save(folder / "large.png")

answers = {}
for path in sorted(folder.glob("*.png")):
    answers[path.stem] = [[box, text, float(score)] for box, text, score in read(path)]
json.dump(answers, sys.stdout, ensure_ascii=False)
assert all(math.isfinite(score) for lines in answers.values() for *_, score in lines)
