//! Where a crash may happen: before each operation that changes the file system, and in the middle of each write. Nothing
//! but the crash tests (in this file) looks at it; elsewhere it compiles to nothing.

/// An operation on the file system follows.
#[cfg(not(test))]
#[inline]
pub(crate) fn point() {}

/// `bytes` are about to be written by `write`.
#[cfg(not(test))]
#[inline]
#[allow(clippy::unnecessary_wraps, reason = "as the tests have it")]
pub(crate) fn writing<E>(_bytes: &[u8], _write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    Ok(())
}

#[cfg(test)]
pub(crate) use tests::{point, writing};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::bundle::{DataFileWriter, Reader};
    use crate::keep::{self, Options};
    use crate::manifest::{DataPosition, Manifest, Placement, VERSION};
    use crate::saver::{self, prefix};
    use crate::state;

    /// The operation (counted from 1) that the process does not come to; in its environment.
    const CRASH_AT: &str = "COATI_TEST_CRASH_AT";
    const FOLDER: &str = "COATI_TEST_CRASH_FOLDER";
    const SCENARIO: &str = "COATI_TEST_CRASH_SCENARIO";
    /// Exit status of a process that crashed as it was told to.
    const CRASHED: i32 = 77;

    /// Counts in the process that is to crash only: elsewhere tests run side by side.
    fn is_next() -> bool {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let at = std::env::var(CRASH_AT).ok().and_then(|text| text.parse::<u64>().ok());
        at.is_some_and(|at| COUNT.fetch_add(1, Ordering::SeqCst) + 1 == at)
    }

    pub(crate) fn point() {
        if is_next() {
            std::process::exit(CRASHED);
        }
    }

    /// Half of the bytes are written, then the process is gone.
    pub(crate) fn writing<E>(bytes: &[u8], mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        point();
        if is_next() {
            write(&bytes[..bytes.len() / 2])?;
            std::process::exit(CRASHED);
        }
        Ok(())
    }

    fn manifest(step: u64) -> Manifest {
        Manifest {
            version: VERSION,
            job_id: "job".to_owned(),
            incarnation: 1,
            global_step: step,
            config_digest: String::new(),
            seeds: [].into(),
            data: DataPosition::default(),
            record_count: 10,
            replicas: 1,
            batch_size: 1,
            placement: Placement::default(),
            wall_time: step as f64,
            software_version: String::new(),
            files: Vec::new(),
        }
    }

    fn values(step: u64) -> Vec<f32> {
        (0..1000).map(|index| (step * 1000 + index) as f32).collect()
    }

    fn options() -> Options {
        Options {
            max_to_keep: 2,
            ..Options::default()
        }
    }

    /// As a job on parameter servers saves: two data files, index, manifest, state, and the oldest one goes.
    fn save_as_servers(folder: &Path, step: u64) {
        let prefix = prefix(folder, step);
        saver::begin(&prefix).unwrap();
        let mut saved = Vec::new();
        for shard in 0..2 {
            let mut writer = DataFileWriter::create(&prefix, shard, 2).unwrap();
            let name = format!("w{shard}");
            writer
                .append_f32(&name, &[1000], None, [values(step).as_slice()])
                .unwrap();
            saved.extend(writer.finish().unwrap());
        }
        saver::publish(&prefix, 2, &saved, manifest(step)).unwrap();
        keep::update(folder, &prefix, step as f64, options()).unwrap();
    }

    /// As one process saves.
    fn save_alone(folder: &Path, step: u64) {
        let prefix = prefix(folder, step);
        let values = values(step);
        let tensors = [
            ("w0", [1000i64].as_slice(), values.as_slice()),
            ("w1", [1000i64].as_slice(), values.as_slice()),
        ];
        saver::save(&prefix, &tensors, &[], Some(manifest(step))).unwrap();
        keep::update(folder, &prefix, step as f64, options()).unwrap();
    }

    fn run(scenario: &str, folder: &Path) {
        match scenario {
            "servers" => save_as_servers(folder, 15),
            "alone" => save_alone(folder, 15),
            // Training went back from 10 to 5, and comes to 10 again.
            "servers again" => save_as_servers(folder, 10),
            "alone again" => save_alone(folder, 10),
            "clean" => {
                keep::clean(folder).unwrap();
            }
            other => panic!("no scenario {other}"),
        }
    }

    /// The process that crashes; without its environment it does nothing.
    #[test]
    fn crashing_process() {
        let (Some(folder), Ok(scenario)) = (std::env::var_os(FOLDER), std::env::var(SCENARIO)) else {
            return;
        };
        run(&scenario, &PathBuf::from(folder));
    }

    /// What is there after checkpoints of steps 5 and 10.
    fn before(folder: &Path, scenario: &str) {
        for step in [5, 10] {
            save_as_servers(folder, step);
        }
        if scenario.ends_with("again") {
            let state = state::State {
                latest: "model.ckpt-5".to_owned(),
                ..state::State::read(folder).unwrap().unwrap()
            };
            state.write(folder).unwrap();
        }
        if scenario == "clean" {
            for step in [3, 4] {
                let prefix = prefix(folder, step);
                let mut writer = DataFileWriter::create(&prefix, 0, 2).unwrap();
                writer.append_f32("w", &[2], None, [[1.0, 2.0].as_slice()]).unwrap();
                writer.finish().unwrap();
            }
            fs::write(folder.join("checkpoint.tmp"), "half").unwrap();
            fs::write(folder.join("model.ckpt-10.index.tmp"), "half").unwrap();
        }
    }

    /// The folder's newest checkpoint is whole, and nothing is there that belongs to none.
    fn assert_sound(folder: &Path, acceptable: &[u64], what: &str) {
        keep::clean(folder).unwrap();
        let latest = state::latest(folder).unwrap_or_else(|error| panic!("{what}: {error}"));
        let latest = latest.unwrap_or_else(|| panic!("{what}: no checkpoint is left"));
        assert!(acceptable.contains(&latest.step), "{what}: step {}", latest.step);
        let complete = state::list(folder).unwrap();
        for checkpoint in &complete {
            let reader = Reader::open(&checkpoint.prefix).unwrap();
            for name in ["w0", "w1"] {
                assert!(
                    reader.read_f32(name).unwrap() == values(checkpoint.step),
                    "{what}: {name} of step {}",
                    checkpoint.step
                );
            }
        }
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let belongs = complete
                .iter()
                .any(|checkpoint| name.starts_with(&format!("model.ckpt-{}.", checkpoint.step)));
            assert!(
                name == "checkpoint" || (belongs && !name.ends_with(crate::files::TEMPORARY)),
                "{what}: {name} is left"
            );
        }
        // The job goes on from here, to the same end.
        save_as_servers(folder, 20);
        assert_eq!(state::latest(folder).unwrap().unwrap().step, 20, "{what}");
    }

    fn crash_everywhere(scenario: &str, acceptable: &[u64]) -> u64 {
        for at in 1..1000 {
            let folder = tempfile::tempdir().unwrap();
            before(folder.path(), scenario);
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "fault::tests::crashing_process", "--quiet"])
                .env(CRASH_AT, at.to_string())
                .env(FOLDER, folder.path())
                .env(SCENARIO, scenario)
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            let what = format!("{scenario}, crash before operation {at}");
            assert_sound(folder.path(), acceptable, &what);
            if status.success() {
                return at - 1;
            }
            assert_eq!(status.code(), Some(CRASHED), "{what}");
        }
        panic!("{scenario}: endless");
    }

    #[test]
    fn a_crash_of_a_job_on_servers_leaves_a_checkpoint() {
        // Two data files, index, manifest, state, and the removal of four files: some thirty operations.
        let operations = crash_everywhere("servers", &[10, 15]);
        assert!(operations > 30, "{operations}");
    }

    #[test]
    fn a_crash_of_a_job_in_one_process_leaves_a_checkpoint() {
        let operations = crash_everywhere("alone", &[10, 15]);
        assert!(operations > 25, "{operations}");
    }

    #[test]
    fn a_crash_while_a_step_is_saved_again_leaves_a_checkpoint() {
        crash_everywhere("servers again", &[5, 10]);
        crash_everywhere("alone again", &[5, 10]);
    }

    #[test]
    fn a_crash_while_cleaning_up_is_cleaned_up() {
        let operations = crash_everywhere("clean", &[10]);
        assert!(operations >= 4, "{operations}");
    }
}
