"""What TensorFlow makes of a folder's `checkpoint` file: latest_checkpoint.py MODEL_DIR"""

import json
import sys

import tensorflow as tf

state = tf.train.get_checkpoint_state(sys.argv[1])
print(json.dumps({
    "latest": tf.train.latest_checkpoint(sys.argv[1]),
    "all": list(state.all_model_checkpoint_paths),
    "times": list(state.all_model_checkpoint_timestamps),
}))
