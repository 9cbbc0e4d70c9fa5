"""Reads a checkpoint with TensorFlow: read_checkpoint.py PREFIX OUT

Writes the bytes of tensor i to OUT/i and prints a JSON list of name, dtype and shape."""

import json
import os
import sys

import tensorflow as tf

prefix, out = sys.argv[1:]
reader = tf.train.load_checkpoint(prefix)
listing = []
for i, (name, shape) in enumerate(tf.train.list_variables(prefix)):
    value = reader.get_tensor(name)
    assert list(value.shape) == list(shape), (name, value.shape, shape)
    value.tofile(os.path.join(out, str(i)))
    listing.append({"name": name, "dtype": value.dtype.name, "shape": list(value.shape)})
print(json.dumps(listing))
