//! Many faults in one job: the short form of `scripts/chaos`.

use coati_tests::chaos::{self, Options};

#[test]
fn ten_faults_lose_no_step_and_no_record_and_use_none_twice() {
    let options = Options {
        kills: 10,
        seed: 20,
        ..Options::default()
    };
    println!("seed {}", options.seed);
    let report = chaos::run(&options, &mut |text| println!("{text}"));
    println!("{report}");
    assert!(report.holds(), "{report}");
    let json = report.json();
    for name in ["steps_lost", "records_lost", "records_doubled"] {
        assert_eq!(json[name], 0, "{json}");
    }
    assert_eq!(report.weights_proven, Some(true));
    // What was lost in between is not to be seen in what was learnt.
    let (loss, calm) = (report.final_loss, report.undisturbed_loss);
    assert!((loss - calm).abs() < 0.2 * calm, "{loss} and {calm}");
}
