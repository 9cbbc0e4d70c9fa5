"""Writes a classifier's checkpoint as slim's are: write_classifier.py DETECTOR OUT

The feature extractor's variables of DETECTOR (as TensorFlow reads them) without their scope, those of the classifier's head, a
batch norm of another shape, and optimiser slots; without one of the first layer's. Prints the names of the variables that it has taken."""

import json
import sys

import numpy as np
import tensorflow as tf

detector, out = sys.argv[1:]
reader = tf.train.load_checkpoint(detector)
scope = "FeatureExtractor/"
slots = ("Momentum", "RMSProp", "ExponentialMovingAverage", "Adam")
values = {
    name[len(scope):]: reader.get_tensor(name)
    for name in sorted(reader.get_variable_to_shape_map())
    if name.startswith(scope) and not any(part in name for part in slots)
}
del values["MobilenetV1/Conv2d_0/BatchNorm/beta"]
taken = sorted(values)
values["MobilenetV1/Conv2d_1_depthwise/BatchNorm/beta"] = np.zeros(3, np.float32)
taken.remove("MobilenetV1/Conv2d_1_depthwise/BatchNorm/beta")
values["MobilenetV1/Logits/Conv2d_1c_1x1/biases"] = np.zeros(1001, np.float32)
values["MobilenetV1/Conv2d_0/weights/RMSProp"] = np.zeros(5, np.float32)
values["global_step"] = np.int64(1000)
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for name, value in values.items():
        tf.compat.v1.get_variable(name, initializer=value)
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, out, write_meta_graph=False)
print(json.dumps(taken))
