"""Writes a small checkpoint with partitioned variables with TensorFlow itself: make_partitioned_checkpoint.py PREFIX

Element i (C order) of every tensor is i, so that a reader's mistakes show."""

import sys

import numpy as np
import tensorflow.compat.v1 as tf

tf.disable_eager_execution()


def counting(shape):
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape)


tf.get_variable("whole", initializer=counting([2, 3]))
for name, shape, parts in [
    ("rows", [10, 4], [3, 1]),
    ("columns", [3, 200], [1, 3]),
    ("kernel/weights", [3, 3, 4, 6], [1, 1, 1, 2]),
]:
    # Each part is initialised with its own piece of the counting tensor.
    full = counting(shape)

    def initializer(shape, dtype=None, partition_info=None, full=full):
        at = partition_info.var_offset
        return full[tuple(slice(a, a + n) for a, n in zip(at, shape))]

    tf.get_variable(
        name, shape, initializer=initializer, partitioner=lambda shape, dtype, parts=parts: parts, use_resource=False)
tf.Variable(7, dtype=tf.int64, name="global_step")

with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, sys.argv[1], write_meta_graph=False, write_state=False)
