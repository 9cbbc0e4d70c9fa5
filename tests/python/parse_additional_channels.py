"""Parses records with additional channels as the reference's decoder does: colours of `image/encoded`, one channel of each further file.

Usage: parse_additional_channels.py RECORDS FOLDER. Writes the bytes of record N's image, [height, width, channels], to FOLDER/N, and prints the shapes.
"""

import json
import pathlib
import sys

import tensorflow as tf

FEATURES = {
    "image/encoded": tf.io.FixedLenFeature((), tf.string),
    "image/additional_channels/encoded": tf.io.VarLenFeature(tf.string),
}


def decode(encoded, channels):
    if tf.io.is_jpeg(encoded):
        return tf.io.decode_jpeg(encoded, channels=channels)
    return tf.io.decode_image(encoded, channels=channels)


def main():
    shapes = []
    for record in tf.data.TFRecordDataset(sys.argv[1]):
        parsed = tf.io.parse_single_example(record, FEATURES)
        further = [decode(encoded, 1) for encoded in parsed["image/additional_channels/encoded"].values]
        image = tf.concat([decode(parsed["image/encoded"], 3), *further], axis=2)
        pathlib.Path(sys.argv[2], str(len(shapes))).write_bytes(image.numpy().tobytes())
        shapes.append(image.shape.as_list())
    json.dump(shapes, sys.stdout)


main()
