use coati_param_server::schedule::{Error, LearningRate, learning_rate};
use coati_proto::object_detection::protos;

use crate::golden;

#[test]
fn every_recorded_schedule_agrees() {
    let text = std::fs::read_to_string(golden::path("components/learning_rates.json")).unwrap();
    let cases: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    for (name, case) in &cases {
        let config = case["config"].as_str().unwrap();
        if config.contains("not reachable from the proto") {
            continue;
        }
        let proto: protos::LearningRate = golden::parse("LearningRate", config);
        let schedule = LearningRate::try_from(&proto).unwrap();
        for (step, expected) in case["lr"].as_array().unwrap().iter().enumerate() {
            let (expected, found) = (
                expected.as_f64().unwrap(),
                f64::from(learning_rate(&schedule, step as u64)),
            );
            // Where the cosine meets zero only the distance to it means something.
            let tolerance = 1e-6 * expected.abs() + 1e-9;
            assert!(
                (found - expected).abs() <= tolerance,
                "{name} step {step}: {found}, expected {expected}"
            );
            checked += 1;
        }
    }
    assert!(checked > 300, "{checked}");
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (config, expected) in [
        ("", "learning_rate is not set"),
        ("exponential_decay_learning_rate { decay_steps: 0 }", "decay_steps is 0"),
        (
            "cosine_decay_learning_rate { total_steps: 5 warmup_steps: 6 }",
            "total_steps is 5",
        ),
        (
            "manual_step_learning_rate { schedule { step: 5 } schedule { step: 5 } }",
            "5 after 5",
        ),
        ("constant_learning_rate { learning_rate: nan }", "learning_rate is NaN"),
    ] {
        let proto: protos::LearningRate = golden::parse("LearningRate", config);
        let error: Error = LearningRate::try_from(&proto).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
