"""Parses records as the reference's decoder does and prints a list of their fields. Usage: parse_records.py TRUNCATED_KIND FILE...

TRUNCATED_KIND is `int` or `float`: KITTI's records have numbers there.
"""

import json
import sys

import tensorflow as tf

FIXED = {"encoded": "", "format": "jpeg", "filename": "", "key/sha256": "", "source_id": ""}
LISTS = {
    tf.float32: ["object/bbox/ymin", "object/bbox/xmin", "object/bbox/ymax", "object/bbox/xmax", "object/area", "class/confidence"],
    tf.int64: ["object/class/label", "object/is_crowd", "object/difficult", "object/group_of", "object/occluded", "object/depiction", "class/label"],
    tf.string: ["object/class/text", "object/view", "object/mask", "class/text", "caption"],
}


def spec(truncated):
    features = {f"image/{name}": tf.io.FixedLenFeature((), tf.string, default) for name, default in FIXED.items()}
    features.update({f"image/{side}": tf.io.FixedLenFeature((), tf.int64, 1) for side in ("height", "width")})
    for kind, names in LISTS.items():
        features.update({f"image/{name}": tf.io.VarLenFeature(kind) for name in names})
    features["image/object/truncated"] = tf.io.VarLenFeature(truncated)
    return features


def plain(value):
    if isinstance(value, tf.sparse.SparseTensor):
        value = value.values
    value = value.numpy()
    if hasattr(value, "tolist"):
        value = value.tolist()
    values = value if isinstance(value, list) else [value]
    values = [one.decode() if isinstance(one, bytes) else one for one in values]
    return values if isinstance(value, list) else values[0]


def main():
    features = spec(tf.float32 if sys.argv[1] == "float" else tf.int64)
    records = []
    for record in tf.data.TFRecordDataset(sys.argv[2:]):
        parsed = tf.io.parse_single_example(record, features)
        encoded = parsed.pop("image/encoded")
        masks = parsed.pop("image/object/mask").values
        fields = {name: plain(value) for name, value in parsed.items()}
        fields["shape"] = tf.io.decode_image(encoded, channels=3).shape.as_list()
        fields["bytes"] = int(tf.strings.length(encoded))
        decoded = [tf.io.decode_png(mask, channels=1).numpy() for mask in masks]
        fields["masks"] = [{"shape": list(mask.shape[:2]), "area": int(mask.sum()), "most": int(mask.max())} for mask in decoded]
        records.append(fields)
    json.dump(records, sys.stdout)


main()
