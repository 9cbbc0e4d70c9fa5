use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_common::variables::VariableKind;
use coati_proto::coati::v1::Encoding;

use super::model::Model;
use crate::placement::ServerLayout;
use crate::pool::CHUNK;
use crate::wire::write_bf16;

/// One server's arena at one version. Later commits leave it as it is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    version: u64,
    /// In arena order, without gaps.
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    vector: Arc<Vec<f32>>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.vector[self.range.clone()])
    }
}

impl Snapshot {
    pub(super) fn new(
        model: &Model,
        server: &ServerLayout,
        version: u64,
        averages: bool,
    ) -> Result<Self, ServiceError> {
        if !averages {
            let part = Part {
                vector: Arc::clone(&model.values),
                range: 0..server.arena_len,
            };
            return Ok(Self {
                version,
                parts: vec![part],
            });
        }
        let averages = model.averages.as_ref().ok_or_else(|| {
            ServiceError::new(
                ErrorCode::InvalidRequest,
                "moving averages are asked for, but none are kept",
            )
            .with_hint("set use_moving_average in the optimizer's configuration")
        })?;
        let parts = server.segments.iter().map(|segment| Part {
            vector: Arc::clone(if segment.kind == VariableKind::Trainable {
                averages
            } else {
                &model.values
            }),
            range: segment.offset..segment.offset + segment.length,
        });
        Ok(Self {
            version,
            parts: parts.collect(),
        })
    }

    /// The variables' version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The values in pieces: first element within the arena, elements.
    pub fn slices(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.parts
            .iter()
            .map(|part| (part.range.start, &part.vector[part.range.clone()]))
    }

    /// The values as messages: first element within the arena, how they are written, bytes. Float32 is not copied.
    /// `trainable` of the first elements may be bfloat16 if `weights` is.
    pub(crate) fn into_chunks(
        self,
        weights: Encoding,
        trainable: usize,
    ) -> impl Iterator<Item = (u64, Encoding, Bytes)> {
        let short = if weights == Encoding::Bfloat16 { trainable } else { 0 };
        self.parts.into_iter().flat_map(move |part| {
            let Part { vector, range } = part;
            let border = short.clamp(range.start, range.end);
            let halves = [
                (Encoding::Bfloat16, range.start..border),
                (Encoding::Float32, border..range.end),
            ];
            halves.into_iter().flat_map(move |(encoding, range)| {
                let (vector, end) = (Arc::clone(&vector), range.end);
                range.step_by(CHUNK).map(move |start| {
                    let range = start..end.min(start + CHUNK);
                    let data = if encoding == Encoding::Bfloat16 {
                        let mut short = Vec::with_capacity(range.len() * 2);
                        write_bf16(&vector[range], &mut short);
                        short.into()
                    } else {
                        let vector = Arc::clone(&vector);
                        Bytes::from_owner(Part { vector, range })
                    };
                    (start as u64, encoding, data)
                })
            })
        })
    }

    /// Copies the values to their places in the model's flat vector.
    pub fn scatter(&self, server: &ServerLayout, flat: &mut [f32]) {
        for (start, values) in self.slices() {
            server.scatter(start, bytemuck::cast_slice(values), flat);
        }
    }
}
