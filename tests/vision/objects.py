"""What the graphs of `yolov3-tiny` and `efficientnet-lite0` say of photographs, driven directly, and what follows from it.

    python objects.py SCIKIT_IMAGE.whl DETECTOR.onnx LABELS CLASSIFIER.onnx LABELS.json FOLDER

Writes the photographs into FOLDER and prints the findings. Nothing here knows how the plugin does it: pictures are scaled by
Pillow, boxes chosen by numpy.
"""

import io
import json
import pathlib
import sys
import zipfile

import numpy
import onnxruntime
from PIL import Image

wheel, detector, kinds, classifier, classes, folder = sys.argv[1:]
detector, classifier = onnxruntime.InferenceSession(detector), onnxruntime.InferenceSession(classifier)
kinds = pathlib.Path(kinds).read_text().splitlines()
classes = json.loads(pathlib.Path(classes).read_text())


def photographs():
    with zipfile.ZipFile(wheel) as package:
        for name in ["coffee", "chelsea", "motorcycle_left", "astronaut"]:
            yield name, Image.open(io.BytesIO(package.read(f"skimage/data/{name}.png"))).convert("RGB")
        person = Image.open(io.BytesIO(package.read("skimage/data/astronaut.png"))).convert("RGB")
    # The same face twice, large and small.
    both = numpy.full((560, 860, 3), 90, numpy.uint8)
    both[20:532, 20:532] = person
    both[100:356, 570:826] = numpy.asarray(person)[::2, ::2]
    yield "both", Image.fromarray(both)


def detect(picture, side=416, least=0.25, most=0.45):
    width, height = picture.size
    scale = min(side / width, side / height)
    size = round(width * scale), round(height * scale)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    ground = Image.new("RGB", (side, side), (127, 127, 127))
    ground.paste(picture.resize(size, Image.BICUBIC), (left, top))
    numbers = (numpy.asarray(ground, numpy.float32) / 255).transpose(2, 0, 1)[None]
    (rows,) = detector.run(None, {"images": numbers})[0]
    scores = rows[:, 4:5] * rows[:, 5:]
    kind, score = scores.argmax(1), scores.max(1)
    half = rows[:, 2:4] / 2
    edges = numpy.hstack([rows[:, :2] - half, rows[:, :2] + half])
    found = []
    for row in numpy.argsort(-score, kind="stable"):
        if score[row] < least:
            break
        if all(kind[row] != kind[other] or overlap(edges[row], edges[other]) <= most for other in found):
            found.append(row)
    ratio = numpy.array([size[0] / width, size[1] / height] * 2)
    within = numpy.array([width, height] * 2)
    box = lambda row: numpy.clip((edges[row] - [left, top, left, top]) / ratio, 0, within).tolist()
    return [{"label": kinds[kind[row]], "score": float(score[row]), "box": box(row)} for row in found]


def overlap(one, other):
    sides = numpy.minimum(one[2:], other[2:]) - numpy.maximum(one[:2], other[:2])
    shared = numpy.prod(numpy.maximum(sides, 0))
    return shared / (numpy.prod(one[2:] - one[:2]) + numpy.prod(other[2:] - other[:2]) - shared)


def classify(picture, side=224):
    width, height = picture.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    picture = picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.BICUBIC)
    numbers = ((numpy.asarray(picture, numpy.float32) - 127) / 128).transpose(2, 0, 1)[None]
    probabilities, features = classifier.run(["probs", "features"], {"input": numbers})
    best = probabilities[0].argsort()[::-1][:5]
    labels = [{"label": classes[place], "score": float(probabilities[0][place])} for place in best]
    return labels, (features[0] / numpy.linalg.norm(features[0])).tolist()


findings = {}
for name, picture in photographs():
    picture.save(pathlib.Path(folder) / f"{name}.png")
    labels, features = classify(picture)
    findings[name] = {"objects": detect(picture), "labels": labels, "features": features}
print(json.dumps(findings))
