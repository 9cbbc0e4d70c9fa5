//! Bundles that TensorFlow wrote.

use std::fs;

use coati_checkpoint::bundle::{Reader, SavedTensor, dtype_name, write_plain_index};
use coati_checkpoint::{saver, state};
use serde_json::Value;

use crate::support::{counting, fixture, shared};

fn listing(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(&format!("golden/tensor_bundle/{name}.json"))).unwrap()).unwrap()
}

fn shape(tensor: &Value) -> Vec<i64> {
    tensor["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|size| size.as_i64().unwrap())
        .collect()
}

#[test]
fn indexes_list_what_tensorflow_listed() {
    for name in ["a", "b", "c"] {
        let reader = Reader::open(&fixture(&format!("golden/tensor_bundle/{name}"))).unwrap();
        let listing = listing(name);
        let tensors = listing["tensors"].as_array().unwrap();
        assert_eq!(reader.shard_count(), 1);
        assert!(!reader.needs_manifest());
        assert_eq!(reader.entries().len(), tensors.len());
        for (entry, tensor) in reader.entries().zip(tensors) {
            assert_eq!(entry.name, tensor["name"]);
            assert_eq!(entry.shape, shape(tensor));
            assert_eq!(i64::from(entry.dtype as i32), tensor["dtype_enum"]);
            assert!(entry.slices.is_empty());
        }
    }
}

#[test]
fn indexes_are_written_byte_for_byte_as_tensorflow_does() {
    for name in ["a", "b", "c"] {
        let number = |tensor: &Value, key: &str| tensor[key].as_u64().unwrap();
        let mut tensors: Vec<_> = listing(name)["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tensor| SavedTensor {
                name: tensor["name"].as_str().unwrap().to_owned(),
                shape: shape(tensor),
                dtype: number(tensor, "dtype_enum") as i32,
                shard: number(tensor, "shard_id") as u32,
                offset: number(tensor, "offset"),
                size: number(tensor, "size"),
                crc32c: number(tensor, "crc32c_masked") as u32,
                ..SavedTensor::default()
            })
            .collect();
        // Entries come from many servers in any order.
        tensors.reverse();
        let dir = tempfile::tempdir().unwrap();
        write_plain_index(&dir.path().join(name), 1, &tensors).unwrap();
        let ours = fs::read(dir.path().join(format!("{name}.index"))).unwrap();
        assert!(
            ours == fs::read(fixture(&format!("golden/tensor_bundle/{name}.index"))).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn partitioned_tensors_are_assembled() {
    let reader = Reader::open(&fixture("checkpoint/partitioned.ckpt")).unwrap();
    assert_eq!(reader.entry("rows").unwrap().slices.len(), 3);
    assert_eq!(reader.read_i64("global_step").unwrap(), [7]);
    for name in ["whole", "rows", "columns", "kernel/weights"] {
        let elements = reader.entry(name).unwrap().elements();
        assert_eq!(reader.read_f32(name).unwrap(), counting(elements), "{name}");
        // Every range of it, too.
        let step = (elements / 17).max(1) as usize;
        for start in (0..elements).step_by(step) {
            for length in (0..=elements - start).step_by(step) {
                let expected = &counting(elements)[start as usize..(start + length) as usize];
                assert_eq!(
                    reader.read_f32_range(name, start, length).unwrap(),
                    expected,
                    "{name} {start} {length}"
                );
            }
        }
    }
}

#[test]
fn a_checkpoint_saved_again_has_the_same_bytes() {
    for name in [
        "train_step/start.ckpt",
        "train_step/after3.ckpt",
        "ssd_bccd/model.ckpt-3200",
    ] {
        let Some(prefix) = shared(name, ".index") else { continue };
        let reader = Reader::open(&prefix).unwrap();
        let floats: Vec<_> = reader
            .entries()
            .filter(|entry| dtype_name(entry.dtype) == "float32")
            .collect();
        let values: Vec<_> = floats
            .iter()
            .map(|entry| reader.read_f32(&entry.name).unwrap())
            .collect();
        let step = reader.read_i64("global_step").unwrap()[0];
        assert_eq!(floats.len() + 1, reader.entries().len());
        let tensors: Vec<_> = floats
            .iter()
            .zip(&values)
            .map(|(entry, values)| (entry.name.as_str(), entry.shape.as_slice(), values.as_slice()))
            .collect();

        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("model.ckpt");
        saver::save(&ours, &tensors, &[("global_step", step)], None).unwrap();
        for ending in [".index", ".data-00000-of-00001"] {
            let bytes = |prefix: &std::path::Path| fs::read(format!("{}{ending}", prefix.display())).unwrap();
            assert!(bytes(&ours) == bytes(&prefix), "{name}{ending}");
        }
        assert_eq!(state::list(dir.path()).unwrap()[0].step, step as u64);
    }
}

#[test]
fn slots_of_the_reference_are_there() {
    let Some(prefix) = shared("train_step/after3.ckpt", ".index") else {
        return;
    };
    let reader = Reader::open(&prefix).unwrap();
    assert_eq!(reader.read_i64("global_step").unwrap(), [3]);
    let name = "FeatureExtractor/MobilenetV1/Conv2d_0/weights";
    assert_eq!(
        reader.entry(name).unwrap().shape,
        reader.entry(&format!("{name}/Momentum")).unwrap().shape
    );
    assert_eq!(
        reader.read_raw(name).unwrap().len(),
        reader.read_f32(name).unwrap().len() * 4
    );
}

#[test]
fn wrong_questions_get_useful_answers() {
    let reader = Reader::open(&fixture("checkpoint/partitioned.ckpt")).unwrap();
    let text = |error: coati_checkpoint::bundle::Error| error.to_string();
    assert!(text(reader.read_f32("kernel/weight").unwrap_err()).contains("nearest name is \"kernel/weights\""));
    assert!(text(reader.read_f32("global_step").unwrap_err()).contains("is int64, float32 expected"));
    let error = text(reader.read_f32_range("rows", 39, 2).unwrap_err());
    assert!(error.contains("39..39+2") && error.contains("which has 40"), "{error}");
    assert!(reader.read_f32_range("rows", u64::MAX, 2).is_err());

    let open = |name: &str| text(Reader::open(&fixture(name)).unwrap_err());
    assert!(open("checkpoint/partitioned.ckpt.index").contains("have in common: "));
    assert!(open("checkpoint/partitioned.ckpt.data-00000-of-00001").contains("have in common: "));
    assert!(open("checkpoint").contains("this is a folder"));
    // An index without its data file.
    let error = text(
        Reader::open(&fixture("golden/tensor_bundle/a"))
            .unwrap()
            .check_files()
            .unwrap_err(),
    );
    assert!(error.contains("a.data-00000-of-00001: cannot open"), "{error}");
}
