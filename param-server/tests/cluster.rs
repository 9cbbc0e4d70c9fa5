//! Servers in this process, on loopback.

use std::time::Duration;

use coati_common::variables::{VariableKind, VariableSpec};
use coati_param_server::service::{Handle, Options, serve};
use coati_param_server::{Contributor, PsGroup, Strategy, Tag, plan};
use coati_proto::coati::v1::JobRef;
use coati_proto::object_detection::protos::Optimizer;
use prost::Message as _;

use crate::golden;

/// Longer than anything here takes; a test that waits for it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const ADAM: &str = "adam_optimizer { learning_rate { exponential_decay_learning_rate { initial_learning_rate: 0.01 decay_steps: 3 decay_factor: 0.5 } } } use_moving_average: true moving_average_decay: 0.9";

/// Without momentum and with a rate of one, a gradient of ones takes one from each value.
pub(crate) const COUNTING: &str = "momentum_optimizer { learning_rate { constant_learning_rate { learning_rate: 1 } } momentum_optimizer_value: 0 } use_moving_average: false";

pub(crate) fn job(incarnation: u64) -> JobRef {
    JobRef {
        job_id: "test".into(),
        incarnation,
    }
}

pub(crate) fn specs() -> Vec<VariableSpec> {
    let spec = |name: &str, shape: &[i64], kind| VariableSpec {
        name: name.into(),
        shape: shape.to_vec(),
        kind,
    };
    vec![
        spec(
            "FeatureExtractor/Conv2d_0/weights",
            &[3, 3, 3, 32],
            VariableKind::Trainable,
        ),
        spec(
            "FeatureExtractor/Conv2d_0/BatchNorm/gamma",
            &[32],
            VariableKind::Trainable,
        ),
        spec(
            "FeatureExtractor/Conv2d_0/BatchNorm/moving_mean",
            &[32],
            VariableKind::MovingStatistic { decay: 0.9 },
        ),
        spec(
            "FeatureExtractor/Conv2d_1/weights",
            &[1, 1, 64, 128],
            VariableKind::Trainable,
        ),
        spec("FeatureExtractor/frozen/weights", &[7, 11], VariableKind::Constant),
        spec("BoxPredictor_0/biases", &[24], VariableKind::Trainable),
        spec("scale", &[], VariableKind::Trainable),
    ]
}

pub(crate) struct Cluster {
    pub(crate) servers: Vec<Handle>,
    pub(crate) addresses: Vec<String>,
    pub(crate) group: PsGroup,
}

pub(crate) fn optimizer(text: &str) -> bytes::Bytes {
    golden::parse::<Optimizer>("Optimizer", text).encode_to_vec().into()
}

impl Cluster {
    /// Configured, holding no values.
    pub(crate) async fn start(specs: &[VariableSpec], servers: u32, optimizer_text: &str, staleness: u64) -> Self {
        let mut handles = Vec::new();
        for index in 0..servers {
            handles.push(serve(Options::new(index, "127.0.0.1:0")).await.unwrap());
        }
        let addresses: Vec<_> = handles.iter().map(|handle| handle.address().to_string()).collect();
        let placement = plan(specs, servers, Strategy::Balanced).unwrap();
        let group = PsGroup::connect(placement, &addresses, &job(1), LIMIT).await.unwrap();
        group
            .configure(optimizer(optimizer_text), staleness, LIMIT)
            .await
            .unwrap();
        Self {
            servers: handles,
            addresses,
            group,
        }
    }

    pub(crate) async fn values(&self, version: u64) -> Vec<f32> {
        let mut flat = vec![0.0; self.group.layout().flat_len()];
        assert_eq!(self.group.pull(version, LIMIT, &mut flat).await.unwrap(), version);
        flat
    }

    pub(crate) async fn commit(&self, version: u64, contributors: &[Contributor]) {
        let committed = self.group.commit(version, contributors, true, LIMIT).await.unwrap();
        assert_eq!(committed.version, version + 1);
    }

    pub(crate) async fn end(self) {
        self.group.shutdown("the test is over", LIMIT).await.unwrap();
        for server in self.servers {
            tokio::time::timeout(LIMIT, server.ended()).await.unwrap();
        }
    }
}

pub(crate) fn tag(replica: u32, version: u64) -> Tag {
    Tag {
        replica,
        sequence: version + 1,
        version,
    }
}

pub(crate) fn by(replica: u32, version: u64, samples: u32) -> Contributor {
    Contributor {
        replica,
        sequence: version + 1,
        samples,
    }
}

/// Some gradient: the same for the same arguments, of all signs and sizes.
pub(crate) fn gradient(elements: usize, replica: u32, version: u64) -> Vec<f32> {
    let seed = u64::from(replica) << 40 | version << 20;
    (0..elements as u64)
        .map(|i| {
            let mut x = (seed + i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 10f32.powi((x % 7) as i32 - 4)
        })
        .collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
