"""Copies records into gzip and zlib files. Usage: pack_records.py FILE GZIP_FILE ZLIB_FILE"""

import sys

import tensorflow as tf

count = 0
with tf.io.TFRecordWriter(sys.argv[2], "GZIP") as gzip, tf.io.TFRecordWriter(sys.argv[3], "ZLIB") as zlib:
    for record in tf.data.TFRecordDataset(sys.argv[1]):
        count += 1
        for writer in (gzip, zlib):
            writer.write(record.numpy())
print(count)
