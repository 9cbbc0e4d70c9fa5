//! Batch norm with the statistics of two replicas' batches, beside our own kernels.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use coati_detection::accelerator::Device;
use coati_detection::network::{Activation, BatchNorm, Hyperparams, Mode, Network, NetworkConfig, Together};

use super::{apart, length, noise, on, small};

/// One of two replicas, each in a thread.
struct Pair {
    rank: usize,
    to: Sender<Vec<f64>>,
    from: Receiver<Vec<f64>>,
}

impl Together for Pair {
    fn sum(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.to.send(values.to_vec()).map_err(|error| error.to_string())?;
        let other = self.from.recv_timeout(Duration::from_secs(60));
        let other = other.map_err(|error| format!("replica {} is alone: {error}", self.rank))?;
        assert_eq!(other.len(), values.len());
        values.iter_mut().zip(other).for_each(|(own, other)| *own += other);
        Ok(())
    }
}

fn pair() -> [Pair; 2] {
    let ((to_second, from_first), (to_first, from_second)) = (channel(), channel());
    [(to_second, from_second), (to_first, from_first)]
        .into_iter()
        .enumerate()
        .map(|(rank, (to, from))| Pair { rank, to, from })
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| panic!("two"))
}

type Step = (Vec<f32>, Vec<f32>);

/// Class logits and gradients of one step of each replica, with other images each.
fn both(step: impl Fn(usize, Option<Pair>) -> Step + Sync) -> Vec<Step> {
    let step = &step;
    std::thread::scope(|scope| {
        let replicas = pair().map(|pair| scope.spawn(move || step(pair.rank, Some(pair))));
        replicas.into_iter().map(|replica| replica.join().unwrap()).collect()
    })
}

fn images(config: &NetworkConfig, batch: usize, rank: usize) -> Vec<f32> {
    let pixels = batch * config.image_height * config.image_width * 3;
    let values = noise(pixels, 5 + rank as u64).into_iter();
    // The replicas' images differ in brightness, or nobody would see whose statistics count.
    values.map(|x| x * 50.0 + 70.0 + 100.0 * rank as f32).collect()
}

#[test]
fn statistics_of_both_replicas_count_in_both_directions() {
    let norm = BatchNorm {
        train: true,
        epsilon: 0.001,
        center: true,
        scale: true,
        decay: 0.9,
        sync: true,
    };
    let hyper = Hyperparams {
        activation: Activation::None,
        batch_norm: Some(norm),
        ..Hyperparams::mobilenet_v1()
    };
    let config = small(&hyper, &[3, 6], (65, 80));
    let network = Network::new(&config).unwrap();
    assert!(network.is_synchronised());
    let mut params = network.init_values(3);
    for (p, x) in params.iter_mut().zip(noise(network.elements(), 9)) {
        *p += 0.1 * p.abs().max(0.2) * x;
    }
    let slopes = |batch: usize, rank: usize| {
        let anchors = batch * network.anchors();
        (
            noise(anchors * 4, 11 + rank as u64),
            noise(anchors * 4, 21 + rank as u64),
        )
    };
    // Not as many images here as there.
    let batch = |rank: usize| 2 + rank;
    let params = &params;
    let (config, slopes) = (&config, &slopes);
    let on_host = |rank: usize, pair: Option<Pair>| {
        let mut network = Network::new(config).unwrap();
        network.set_together(pair.map(|pair| Box::new(pair) as Box<dyn Together>));
        let batch = batch(rank);
        let outputs = network
            .forward(params, &images(config, batch, rank), Mode::Train)
            .unwrap();
        let (d_box, d_class) = slopes(batch, rank);
        let mut gradients = vec![f32::NAN; params.len()];
        network.backward(params, &d_box, &d_class, &mut gradients).unwrap();
        (outputs.class_logits, gradients)
    };
    let on_torch = |rank: usize, pair: Option<Pair>| {
        let network = Network::new(config).unwrap();
        let settings = on(Device::TorchCpu);
        let mut torch = coati_detection::accelerator::Accelerator::open(settings, config, &network)
            .unwrap()
            .unwrap();
        torch.set_together(pair.map(|pair| Box::new(pair) as Box<dyn Together>));
        let batch = batch(rank);
        let outputs = torch
            .forward(params, &images(config, batch, rank), Mode::Train)
            .unwrap();
        let (d_box, d_class) = slopes(batch, rank);
        let mut gradients = vec![f32::NAN; params.len()];
        torch.backward(&d_box, &d_class, &mut gradients).unwrap();
        (outputs.class_logits, gradients)
    };
    let (expected, found) = (both(on_host), both(on_torch));
    for rank in 0..2 {
        let error = apart(&found[rank].0, &expected[rank].0);
        assert!(error < 1e-4, "outputs of rank {rank}: {error}");
        let alone = on_torch(rank, None);
        assert!(
            apart(&alone.0, &expected[rank].0) > 0.01,
            "its own statistics are others"
        );
        let (whole, mut at) = (length(&expected[rank].1), 0);
        for spec in network.variables() {
            let range = at..at + spec.elements();
            at = range.end;
            let (found, expected) = (&found[rank].1[range.clone()], &expected[rank].1[range]);
            let (error, part) = (apart(found, expected), length(expected) / whole);
            assert!(
                error < 2e-3 || error * part < 1e-5,
                "{} of rank {rank}: {error} of {part}",
                spec.name
            );
        }
    }
}

#[test]
fn a_replica_that_is_lost_is_told_in_its_words() {
    let config = small(&Hyperparams::mobilenet_v1(), &[3, 6], (65, 80));
    let mut config = config;
    for group in [&mut config.base, &mut config.extra, &mut config.predictor.hyperparams] {
        if let Some(norm) = &mut group.batch_norm {
            norm.sync = true;
        }
    }
    let network = Network::new(&config).unwrap();
    let mut torch = super::open(&config, &network);
    let [own, other] = pair();
    drop(other);
    torch.set_together(Some(Box::new(own)));
    let params = network.init_values(3);
    let error = torch.start(&params, &images(&config, 1, 0)).unwrap_err().to_string();
    assert!(error.contains("closed") || error.contains("alone"), "{error}");
}
