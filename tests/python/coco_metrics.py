"""COCO's twelve box metrics by pycocotools, under the reference's names: coco_metrics.py GROUNDTRUTH DETECTIONS"""

import contextlib
import json
import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = [
    "Precision/mAP", "Precision/mAP@.50IOU", "Precision/mAP@.75IOU", "Precision/mAP (small)", "Precision/mAP (medium)",
    "Precision/mAP (large)", "Recall/AR@1", "Recall/AR@10", "Recall/AR@100", "Recall/AR@100 (small)",
    "Recall/AR@100 (medium)", "Recall/AR@100 (large)"
]

with contextlib.redirect_stdout(sys.stderr):
    groundtruth = COCO(sys.argv[1])
    evaluation = COCOeval(groundtruth, groundtruth.loadRes(sys.argv[2]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
print(json.dumps({"DetectionBoxes_" + name: float(value) for name, value in zip(NAMES, evaluation.stats)}))
