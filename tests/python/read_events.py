"""Reads a folder's event files with TensorBoard's own loader: read_events.py DIR"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
print(json.dumps({
    "version": events.file_version,
    "scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
    "histograms": {
        tag: [
            [e.step, e.histogram_value.min, e.histogram_value.max, e.histogram_value.num, e.histogram_value.sum,
             sum(e.histogram_value.bucket)] for e in events.Histograms(tag)
        ] for tag in tags["histograms"]
    },
    "images": {
        tag: [[e.step, e.width, e.height, len(e.encoded_image_string)] for e in events.Images(tag)]
        for tag in tags["images"]
    },
    "texts": {
        tag: [[e.step, e.tensor_proto.string_val[0].decode()] for e in events.Tensors(tag)]
        for tag in tags["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    },
}))
