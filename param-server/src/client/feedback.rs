//! Error feedback: what top-k leaves out of a gradient is added to the replica's next one, so that nothing is lost, only
//! late (Stich et al., "Sparsified SGD with memory", 2018).

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use coati_proto::coati::v1::Encoding;

use super::transfer::{Packed, in_order_of_backward};
use crate::placement::{Layout, ServerLayout};
use crate::store::{Tag, lock};
use crate::wire::topk_pairs;

/// One contribution in the form in which it travels, by server.
pub(super) type Parts = Arc<Vec<Vec<Packed>>>;

/// What one replica has not sent yet.
#[derive(Debug, Default)]
pub(super) struct Feedback(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By server, `[slotted_len]`.
    left: Vec<Vec<f32>>,
    /// The newest contribution, so that sending it again sends the same.
    newest: Option<(Tag, Parts)>,
}

impl Feedback {
    /// The largest elements of these gradients and what was left before. A tag that was seen gets what it got.
    pub(super) fn pack(&self, tag: Tag, layout: &Layout, flat: &[f32], fraction: f64) -> Parts {
        let mut state = lock(&self.0);
        if let Some((known, parts)) = &state.newest
            && *known == tag
        {
            return Arc::clone(parts);
        }
        state.left.resize_with(layout.servers().len(), Vec::new);
        let packed = layout
            .servers()
            .iter()
            .zip(&mut state.left)
            .map(|(server, left)| pack_server(server, flat, left, fraction));
        let parts: Parts = Arc::new(packed.collect());
        state.newest = Some((tag, Arc::clone(&parts)));
        parts
    }
}

fn pack_server(server: &ServerLayout, flat: &[f32], left: &mut Vec<f32>, fraction: f64) -> Vec<Packed> {
    left.resize(server.slotted_len, 0.0);
    let mut gathered = Vec::new();
    in_order_of_backward(server)
        .into_iter()
        .map(|elements| {
            gathered.clear();
            server.gather(elements.start, elements.end, flat, &mut gathered);
            // What is not finite is for the server to refuse: kept, it would spoil all that comes later.
            let finite = gathered.iter().fold(true, |finite, value| finite & value.is_finite());
            if elements.end > server.slotted_len || elements.is_empty() || !finite {
                let data = Bytes::copy_from_slice(bytemuck::cast_slice(&gathered));
                return Packed {
                    elements,
                    encoding: Encoding::Float32,
                    data,
                };
            }
            let left = &mut left[elements.clone()];
            left.iter_mut().zip(&gathered).for_each(|(left, new)| *left += new);
            let keep = (elements.len() as f64 * fraction).ceil() as usize;
            let mut pairs = Vec::new();
            topk_pairs(left, keep, &mut pairs);
            Packed {
                elements,
                encoding: Encoding::Topk,
                data: pairs.into(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use coati_common::variables::{VariableKind, VariableSpec};

    use super::*;
    use crate::placement::{Strategy, plan};
    use crate::wire::unpack_topk;

    fn unpacked(parts: &Parts, layout: &Layout) -> Vec<f32> {
        let mut flat = vec![0.0; layout.flat_len()];
        for (ps, packed) in (0..).zip(parts.iter()) {
            let mut arena = vec![0.0; layout.arena_len(ps)];
            for part in packed {
                let place = &mut arena[part.elements.clone()];
                match part.encoding {
                    Encoding::Topk => unpack_topk(&part.data, place).unwrap(),
                    _ => bytemuck::cast_slice_mut::<f32, u8>(place).copy_from_slice(&part.data),
                }
            }
            layout.scatter(ps, &arena, &mut flat);
        }
        flat
    }

    #[test]
    fn what_is_left_out_comes_later_and_statistics_come_whole() {
        let spec = |name: &str, elements, kind| VariableSpec {
            name: name.into(),
            shape: vec![elements],
            kind,
        };
        let specs = [
            spec("w", 200, VariableKind::Trainable),
            spec("m", 10, VariableKind::MovingStatistic { decay: 0.9 }),
        ];
        let layout = Layout::new(&plan(&specs, 3, Strategy::Balanced).unwrap()).unwrap();
        let feedback = Feedback::default();
        let gradient: Vec<f32> = (0..210).map(|i| (i * 37 % 101) as f32 + 1.0).collect();
        let zero = vec![0.0; 210];
        let mut sum = vec![0.0; 210];
        for step in 0..12 {
            let tag = Tag {
                replica: 1,
                sequence: step,
                version: step,
            };
            let now = if step == 0 { &gradient } else { &zero };
            let parts = feedback.pack(tag, &layout, now, 0.1);
            let again = feedback.pack(tag, &layout, now, 0.1);
            let got = unpacked(&parts, &layout);
            assert_eq!(unpacked(&again, &layout), got, "sent again");
            assert_eq!(&got[200..], &now[200..], "statistics");
            let sent = got[..200].iter().filter(|&&value| value != 0.0).count();
            assert!((1..=24).contains(&sent) || step > 9, "{sent} in step {step}");
            sum.iter_mut().zip(&got).for_each(|(sum, value)| *sum += value);
        }
        assert_eq!(sum, gradient);
    }

    #[test]
    fn what_is_not_finite_is_sent_and_forgotten() {
        let specs = [VariableSpec {
            name: "w".into(),
            shape: vec![10],
            kind: VariableKind::Trainable,
        }];
        let layout = Layout::new(&plan(&specs, 1, Strategy::Balanced).unwrap()).unwrap();
        let feedback = Feedback::default();
        let mut broken = vec![1.0; 10];
        broken[3] = f32::NAN;
        let gradients = [vec![1.0; 10], broken, vec![0.0; 10]];
        let sent: Vec<Vec<f32>> = (0..)
            .zip(&gradients)
            .map(|(version, gradient)| {
                let tag = Tag {
                    replica: 1,
                    sequence: version,
                    version,
                };
                unpacked(&feedback.pack(tag, &layout, gradient, 0.5), &layout)
            })
            .collect();
        assert!(sent[1][3].is_nan());
        assert_eq!(sent[0].iter().sum::<f32>() + sent[2].iter().sum::<f32>(), 10.0);
    }
}
