"""What RapidOCR says of a scanned page where it is told not to find, not to turn, or not to read.

    python rapid.py SCIKIT_IMAGE.whl FOLDER

Writes the pictures into FOLDER: the page, the page on its head, one line of it, and that line blurred until little can be read.
Prints {picture: {flag: what it says}}; without a flag, an empty one.
"""

import io
import json
import pathlib
import sys
import zipfile

from PIL import Image, ImageFilter
from rapidocr_onnxruntime import RapidOCR

wheel, folder = sys.argv[1], pathlib.Path(sys.argv[2])
with zipfile.ZipFile(wheel) as package:
    page = Image.open(io.BytesIO(package.read("skimage/data/page.png"))).convert("RGB")
line = page.crop((0, 38, page.width, 62))
pictures = {
    "page": page,
    "head": page.rotate(180),
    "line": line,
    "blurred": line.filter(ImageFilter.GaussianBlur(3)),
}
read, said = RapidOCR(), {}
for name, picture in pictures.items():
    path = folder / f"{name}.png"
    picture.save(path)
    flags = [{}, {"use_det": False}, {"use_cls": False}, {"use_rec": False}]
    said[name] = {"".join(flag): read(str(path), **flag)[0] or [] for flag in flags}
json.dump(said, sys.stdout, default=float)
