use coati_common::variables::VariableSpec;

use super::{Part, class, cut};

/// Variables above 4 MiB are cut in any case: one piece is one message.
const LARGEST_PART: usize = coati_common::rpc::CHUNK_BYTES / 4;

/// Longest piece first, to the server that holds least; pieces are made smaller until no server holds more than
/// 1.05 times the mean.
///
/// Trainable elements, which have slots, are balanced among themselves and then the sum with all others is. So the
/// bound holds for every number of slots an optimiser may have.
pub(super) fn place(specs: &[VariableSpec], servers: usize) -> Vec<Vec<Part>> {
    let mut loads = vec![0; servers];
    let mut held = vec![Vec::new(); servers];
    for trainable in [true, false] {
        let variables: Vec<usize> = (0..specs.len())
            .filter(|&v| (class(&specs[v]) == 0) == trainable)
            .collect();
        let mut limit = LARGEST_PART;
        loop {
            let (tried, pieces) = deal(specs, &variables, limit, &loads);
            if limit == 1 || balanced(&tried) {
                loads = tried;
                for (server, piece) in pieces {
                    held[server].push(piece);
                }
                break;
            }
            limit /= 2;
        }
    }
    held
}

fn deal(
    specs: &[VariableSpec],
    variables: &[usize],
    limit: usize,
    loads: &[usize],
) -> (Vec<usize>, Vec<(usize, Part)>) {
    let mut parts = Vec::new();
    for &variable in variables {
        cut::cut(&specs[variable], variable, limit, &mut parts);
    }
    parts.sort_by_key(|part| (std::cmp::Reverse(part.length), *part));
    let mut heap: std::collections::BinaryHeap<_> = loads
        .iter()
        .enumerate()
        .map(|(server, &load)| std::cmp::Reverse((load, server)))
        .collect();
    let mut placed = Vec::with_capacity(parts.len());
    let mut loads = loads.to_vec();
    for part in parts {
        let Some(std::cmp::Reverse((load, server))) = heap.pop() else {
            break;
        };
        placed.push((server, part));
        loads[server] = load + part.length;
        heap.push(std::cmp::Reverse((loads[server], server)));
    }
    (loads, placed)
}

fn balanced(loads: &[usize]) -> bool {
    let (largest, sum) = (loads.iter().max().copied().unwrap_or(0), loads.iter().sum::<usize>());
    // largest <= 1.05 * mean, without rounding.
    largest as u128 * loads.len() as u128 * 100 <= sum as u128 * 105
}
