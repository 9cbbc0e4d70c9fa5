"""Restores the variables of one checkpoint from another one, by name, as a TensorFlow 1 program does: restore_by_name.py OURS THEIRS

Builds a graph with the variables of THEIRS (names, shapes, types), restores all of them from OURS with a Saver, and prints how many
there are and which further ones OURS has."""

import json
import sys

import tensorflow as tf

ours, theirs = sys.argv[1:]
known = tf.train.list_variables(theirs)
types = tf.train.load_checkpoint(theirs).get_variable_to_dtype_map()
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = [tf.compat.v1.get_variable(name, shape, types[name]) for name, shape in known]
    tf.compat.v1.train.Saver(variables).restore(session, ours)
    reader = tf.train.load_checkpoint(ours)
    for variable, value in zip(variables, session.run(variables)):
        assert (value == reader.get_tensor(variable.op.name)).all(), variable
further = sorted(set(name for name, _ in tf.train.list_variables(ours)) - set(name for name, _ in known))
print(json.dumps({"restored": len(variables), "further": further}))
