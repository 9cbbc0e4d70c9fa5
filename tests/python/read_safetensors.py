"""Compares a safetensors file, read by its format's own description, with a checkpoint: read_safetensors.py FILE PREFIX"""

import json
import struct
import sys

import numpy as np
import tensorflow as tf

path, prefix = sys.argv[1:]
with open(path, "rb") as file:
    content = file.read()
(length,) = struct.unpack("<Q", content[:8])
header = json.loads(content[8:8 + length])
header.pop("__metadata__", None)
data = content[8 + length:]
types = {"F32": np.float32, "I64": np.int64}
reader = tf.train.load_checkpoint(prefix)
names = sorted(name for name, _ in tf.train.list_variables(prefix))
assert sorted(header) == names, (sorted(header), names)
ends = []
for name, info in header.items():
    start, end = info["data_offsets"]
    ends.append((start, end))
    value = np.frombuffer(data[start:end], types[info["dtype"]]).reshape(info["shape"])
    assert (value == reader.get_tensor(name)).all() and value.shape == tuple(reader.get_tensor(name).shape), name
ends.sort()
assert ends[0][0] == 0 and ends[-1][1] == len(data) and all(a[1] == b[0] for a, b in zip(ends, ends[1:]))
print(json.dumps({"tensors": len(header)}))
