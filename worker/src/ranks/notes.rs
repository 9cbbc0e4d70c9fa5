//! What ranks tell each other beside gradients: when they meet, and once a step. JSON, a few hundred bytes.

use coati_checkpoint::manifest::DataPosition;
use coati_collective::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::exchange::Contribution;

/// What a rank brings to a meeting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Whose variables it holds; nothing when it holds none.
    pub job_id: Option<String>,
    /// Their version.
    pub version: u64,
    /// What of the data was used up to there.
    pub data: DataPosition,
    /// Of rank 0: this start of the job.
    pub incarnation: u64,
    /// Of rank 0: why there is nothing to do.
    pub ended: Option<String>,
    /// `cpu`, `cuda:0`
    pub device: String,
    /// What training computes with: what `auto` came to on this rank's device.
    pub precision: String,
}

/// What a rank says of its part of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Loss parts.
    pub losses: Vec<(String, f64)>,
    /// Seconds of waiting for input.
    pub input: f64,
    /// Seconds of forward and backward pass.
    pub compute: f64,
    /// Somebody asked this process to stop.
    pub stop: bool,
    /// The losses are not finite: whatever its gradient is, it is not to be part of a step.
    pub broken: bool,
}

impl Note {
    /// Of a contribution.
    pub(super) fn of(contribution: &Contribution<'_>, stop: bool) -> Self {
        let losses = contribution.losses.iter();
        // What JSON cannot say is told apart.
        let finite = |value: f64| if value.is_finite() { value } else { 0.0 };
        Self {
            losses: losses.map(|&(name, value)| (name.to_owned(), finite(value))).collect(),
            input: contribution.phases.input.as_secs_f64(),
            compute: contribution.phases.compute.as_secs_f64(),
            stop,
            broken: contribution.finite().is_err(),
        }
    }
}

/// As it travels.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Everybody's, in rank order.
pub(super) fn decode<T: DeserializeOwned>(all: &[Vec<u8>]) -> Result<Vec<T>, Error> {
    let one = |(rank, bytes): (usize, &Vec<u8>)| {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::Refused(format!(
                "rank {rank} says what this program does not understand: {error}"
            ))
        })
    };
    all.iter().enumerate().map(one).collect()
}

/// What all ranks go on with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// Whose state everybody takes.
    pub source: usize,
    /// Its version.
    pub version: u64,
    /// How many ranks beside rank 0 hold variables of the job.
    pub survivors: usize,
    /// What of the data was used.
    pub data: DataPosition,
    /// The job and this start of it.
    pub job_id: String,
    pub incarnation: u64,
    /// There is nothing to do.
    pub ended: Option<String>,
}

/// Decides from what everybody brought: the newest variables of rank 0's job are everybody's, whoever holds them. The same on all ranks.
pub(super) fn decide(hellos: &[Hello]) -> Result<Plan, Error> {
    let first = hellos.first().cloned().unwrap_or_default();
    let job_id = first.job_id.clone().unwrap_or_default();
    let kind = |hello: &Hello| hello.device.split(':').next().unwrap_or_default().to_owned();
    if let Some((rank, other)) = hellos.iter().enumerate().find(|(_, hello)| kind(hello) != kind(&first)) {
        return Err(Error::Setting {
            what: format!("rank {rank} computes on {}, rank 0 on {}", other.device, first.device),
            hint: "all ranks need a device of one kind: see what their logs say of the GPU, or choose --devices cpu:N",
        });
    }
    // Backward passes of two precisions are not cut alike, and two halves of a gradient would be rounded apart.
    let other = hellos
        .iter()
        .enumerate()
        .find(|(_, hello)| hello.precision != first.precision);
    if let Some((rank, other)) = other {
        return Err(Error::Setting {
            what: format!(
                "rank {rank} on {} computes in {}, rank 0 on {} in {}",
                other.device, other.precision, first.device, first.precision
            ),
            hint: "the ranks' GPUs are of different kinds: choose one precision that all of them have, as with --precision fp16",
        });
    }
    let holds = |hello: &&Hello| hello.job_id.as_ref() == Some(&job_id);
    let newest = hellos
        .iter()
        .filter(holds)
        .map(|hello| hello.version)
        .max()
        .unwrap_or(0);
    let survivors = hellos.iter().skip(1).filter(holds).count();
    let source = hellos.iter().position(|hello| holds(&hello) && hello.version == newest);
    let source = source.unwrap_or(0);
    Ok(Plan {
        source,
        version: newest,
        survivors,
        data: hellos.get(source).map(|hello| hello.data.clone()).unwrap_or_default(),
        job_id,
        incarnation: first.incarnation,
        ended: first.ended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(job_id: Option<&str>, version: u64) -> Hello {
        Hello {
            job_id: job_id.map(ToOwned::to_owned),
            version,
            data: DataPosition {
                position: version * 8,
                open: Vec::new(),
            },
            device: "cpu".to_owned(),
            ..Hello::default()
        }
    }

    #[test]
    fn the_newest_variables_of_the_job_are_everybodys() {
        let plan = |hellos: &[Hello]| {
            decide(hellos)
                .map(|plan| (plan.source, plan.version, plan.data.position))
                .unwrap()
        };
        assert_eq!(plan(&[hello(Some("a"), 0), hello(None, 0)]), (0, 0, 0), "at the start");
        // Rank 0 was started again and has a checkpoint; rank 2 made a step that rank 1 did not hear of.
        let survivors = [hello(Some("a"), 20), hello(Some("a"), 36), hello(Some("a"), 37)];
        assert_eq!(plan(&survivors), (2, 37, 296));
        // What a rank holds of another job counts for nothing.
        assert_eq!(plan(&[hello(Some("a"), 20), hello(Some("b"), 90)]), (0, 20, 160));
        assert_eq!(
            plan(&[hello(Some("a"), 20), hello(Some("a"), 20)]),
            (0, 20, 160),
            "the first of equals"
        );
    }

    #[test]
    fn devices_of_two_kinds_are_named() {
        let mut hellos = [hello(Some("a"), 0), hello(None, 0), hello(None, 0)];
        hellos[0].device = "cuda:0".to_owned();
        hellos[1].device = "cuda:1".to_owned();
        let text = decide(&hellos).unwrap_err().to_string();
        assert!(
            text.contains("rank 2 computes on cpu, rank 0 on cuda:0\nhint: "),
            "{text}"
        );
    }

    #[test]
    fn precisions_that_differ_are_named() {
        let mut hellos = [hello(Some("a"), 0), hello(None, 0)];
        hellos[1].precision = "fp16".to_owned();
        hellos[0].precision = "bf16".to_owned();
        let text = decide(&hellos).unwrap_err().to_string();
        assert!(
            text.contains("rank 1 on cpu computes in fp16, rank 0 on cpu in bf16\nhint: "),
            "{text}"
        );
    }

    #[test]
    fn notes_survive_the_way_and_nonsense_is_named() {
        let note = Note {
            losses: vec![("Loss/total_loss".to_owned(), 0.1)],
            stop: true,
            ..Note::default()
        };
        assert_eq!(decode::<Note>(&[encode(&note)]).unwrap(), [note]);
        let error = decode::<Note>(&[b"{}".to_vec(), Vec::new()]).unwrap_err().to_string();
        assert!(
            error.contains("rank 0 says") || error.contains("rank 1 says"),
            "{error}"
        );
    }
}
