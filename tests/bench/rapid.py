"""RapidOCR beside the host, for `vision.rs`: `rapid.py FOLDER DET CLS REC WHEEL`.

Draws a page of text there, unpacks a photograph, and opens RapidOCR on these graphs. For each line of standard input it
reads the page once and prints what that took and what it read, as one line of JSON."""

import json
import pathlib
import sys
import time
import zipfile

from PIL import Image, ImageDraw, ImageFont
from rapidocr_onnxruntime import RapidOCR

folder = pathlib.Path(sys.argv[1])
det, cls, rec, wheel = sys.argv[2:6]

WORDS = """the host reads what stands on a page and says where each line is how certain it is and in which order a reader
would go through it so that a letter an invoice or a form becomes text without anybody typing it again""".split()


def page() -> Image.Image:
    """A4 at 150 dots per inch: a heading, and 44 lines of ten words and a number."""
    page = Image.new("RGB", (1240, 1754), "white")
    draw = ImageDraw.Draw(page)
    draw.text((100, 80), "Report on what was read", fill=(10, 10, 10), font=ImageFont.load_default(48))
    for row in range(44):
        words = [WORDS[(row * 7 + place) % len(WORDS)] for place in range(10)]
        line = f"{' '.join(words)} {row * 37 + 12}."
        draw.text((100, 180 + row * 34), line, fill=(20, 20, 20), font=ImageFont.load_default(22))
    return page


page().save(folder / "page.png")
with zipfile.ZipFile(wheel) as file:
    (folder / "photo.jpg").write_bytes(file.read("skimage/data/rocket.jpg"))
photo = Image.open(folder / "photo.jpg").convert("RGB")
(folder / "photo.rgb").write_bytes(photo.tobytes())

read = RapidOCR(det_model_path=det, cls_model_path=cls, rec_model_path=rec)
print(json.dumps({"photo": photo.size}), flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    lines, _ = read(str(folder / "page.png"))
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(took | {"lines": [text for _, text, _ in lines]}), flush=True)
