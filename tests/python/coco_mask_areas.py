"""Areas of a COCO file's masks by annotation id, as pycocotools has them. Usage: coco_mask_areas.py FILE"""

import json
import sys

from pycocotools import mask

with open(sys.argv[1]) as file:
    content = json.load(file)
sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
areas = {}
for annotation in content["annotations"]:
    runs = mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
    areas[annotation["id"]] = int(mask.area(mask.merge(runs) if isinstance(runs, list) else runs))
json.dump(areas, sys.stdout)
