//! Which parameter server holds which part of which variable: pure functions of the variables and the server count.

mod balanced;
mod cut;
mod layout;

use coati_common::variables::{VariableKind, VariableSpec};
use coati_proto::coati::v1;

pub use cut::slice_of;
pub use layout::{Layout, LocalPiece, Segment, ServerLayout};

/// How variables are dealt out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Whole variables in their order, one server after the other, as TensorFlow's `replica_device_setter` does.
    RoundRobin,
    /// Large variables are cut, the longest pieces go first to the server that holds least.
    #[default]
    Balanced,
}

/// Why there is no placement, or why one cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Nothing can be placed on no servers.
    #[error("there is no parameter server to place variables on")]
    NoServers,
    /// A shape that no variable can have.
    #[error("variable `{name}` has shape {shape:?}, whose number of elements cannot be counted")]
    Shape {
        /// Which variable.
        name: String,
        /// Its shape.
        shape: Vec<i64>,
    },
    /// Two variables of one name.
    #[error("variable `{name}` occurs twice")]
    Duplicate {
        /// Which variable.
        name: String,
    },
    /// Pieces that overlap, leave gaps, or point nowhere.
    #[error("the placement is not consistent: {what}")]
    Inconsistent {
        /// What is wrong.
        what: String,
    },
}

/// A contiguous part of one variable, not yet on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    variable: usize,
    start: usize,
    length: usize,
}

/// Places every element of every variable on exactly one of `servers` servers.
///
/// A server's arena holds trainable pieces first, then moving statistics, then constants, so that what is pushed and
/// what has slots are prefixes of it. The result depends on nothing but the arguments.
pub fn plan(specs: &[VariableSpec], servers: u32, strategy: Strategy) -> Result<v1::Placement, Error> {
    if servers == 0 {
        return Err(Error::NoServers);
    }
    let mut names = std::collections::HashSet::new();
    for spec in specs {
        checked_elements(spec)?;
        if !names.insert(spec.name.as_str()) {
            return Err(Error::Duplicate {
                name: spec.name.clone(),
            });
        }
    }
    let mut held = match strategy {
        Strategy::RoundRobin => round_robin(specs, servers as usize),
        Strategy::Balanced => balanced::place(specs, servers as usize),
    };
    let mut pieces = Vec::new();
    for (ps, parts) in held.iter_mut().enumerate() {
        parts.sort_by_key(|part| (class(&specs[part.variable]), *part));
        let mut offset = 0;
        for part in cut::join(specs, parts) {
            pieces.push(v1::Piece {
                variable: part.variable as u32,
                start: part.start as u64,
                length: part.length as u64,
                ps: ps as u32,
                offset,
            });
            offset += part.length as u64;
        }
    }
    Ok(v1::Placement {
        version: 1,
        variables: specs.iter().map(Into::into).collect(),
        pieces,
        ps_count: servers,
    })
}

fn round_robin(specs: &[VariableSpec], servers: usize) -> Vec<Vec<Part>> {
    let mut held = vec![Vec::new(); servers];
    for (variable, spec) in specs.iter().enumerate() {
        let length = spec.elements();
        if length > 0 {
            held[variable % servers].push(Part {
                variable,
                start: 0,
                length,
            });
        }
    }
    held
}

/// Order within an arena.
pub(crate) fn class(spec: &VariableSpec) -> u8 {
    match spec.kind {
        VariableKind::Trainable => 0,
        VariableKind::MovingStatistic { .. } => 1,
        VariableKind::Constant => 2,
    }
}

/// Number of elements, refusing what [`VariableSpec::elements`] would let overflow.
pub(crate) fn checked_elements(spec: &VariableSpec) -> Result<usize, Error> {
    spec.shape
        .iter()
        .try_fold(1usize, |product, &size| {
            product.checked_mul(usize::try_from(size).ok()?)
        })
        .filter(|&count| count <= isize::MAX as usize / 64)
        .ok_or_else(|| Error::Shape {
            name: spec.name.clone(),
            shape: spec.shape.clone(),
        })
}
