//! What a rank is at: compared between ranks, and told when somebody is missing.

use std::fmt;

use crate::Member;

/// The form in which elements travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16 (to nearest, ties to even) on the way to the sum and on the way back; the sum itself is float32.
    Bf16,
}

/// Operations by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Coming together; no operation yet.
    Rendezvous,
    /// [`crate::Communicator::all_reduce_sum`].
    AllReduce,
    /// [`crate::Communicator::broadcast`].
    Broadcast,
    /// [`crate::Communicator::all_gather`].
    AllGather,
    /// [`crate::Communicator::barrier`].
    Barrier,
    /// [`crate::Communicator::close`].
    Close,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Rendezvous,
        Self::AllReduce,
        Self::Broadcast,
        Self::AllGather,
        Self::Barrier,
        Self::Close,
    ];
}

/// One call on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Counted from 1.
    pub number: u64,
    /// Which one.
    pub kind: Kind,
    /// Form of the elements.
    pub wire: Wire,
    /// Of a broadcast; 0 otherwise.
    pub root: u16,
    /// Elements, or bytes of [`Kind::AllGather`].
    pub count: u64,
}

impl Operation {
    /// Before the first one.
    pub(crate) const NONE: Self = Self {
        number: 0,
        kind: Kind::Rendezvous,
        wire: Wire::F32,
        root: 0,
        count: 0,
    };

    /// Bytes of [`Self::encode`].
    pub(crate) const BYTES: usize = 24;

    /// Three words, little end first.
    pub(crate) fn words(self) -> [u64; 3] {
        let kind = u64::from(self.kind as u8) | u64::from(self.wire as u8) << 8 | u64::from(self.root) << 16;
        [self.number, kind | MARK << 32, self.count]
    }

    /// The inverse of [`Self::words`]; nothing where they are something else.
    pub(crate) fn from_words([number, kind, count]: [u64; 3]) -> Option<Self> {
        if kind >> 32 != MARK {
            return None;
        }
        Some(Self {
            number,
            kind: *Kind::ALL.get((kind & 0xff) as usize)?,
            wire: match kind >> 8 & 0xff {
                0 => Wire::F32,
                1 => Wire::Bf16,
                _ => return None,
            },
            root: (kind >> 16 & 0xffff) as u16,
            count,
        })
    }

    pub(crate) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (at, word) in bytes.chunks_exact_mut(8).zip(self.words()) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut words = [0; 3];
        for (word, at) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(at.try_into().ok()?);
        }
        Self::from_words(words)
    }

    /// Whether two ranks mean the same call. What is gathered may differ in length.
    pub(crate) fn agrees(self, other: Self) -> bool {
        let count = |of: Self| if of.kind == Kind::AllGather { 0 } else { of.count };
        Self {
            count: count(self),
            ..self
        } == Self {
            count: count(other),
            ..other
        }
    }
}

const MARK: u64 = u32::from_le_bytes(*b"COAT") as u64;

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, count) = (self.number, self.count);
        let wire = if self.wire == Wire::Bf16 { " as bfloat16" } else { "" };
        match self.kind {
            Kind::Rendezvous => f.write_str("before operation 1"),
            Kind::AllReduce => write!(f, "operation {number}, all-reduce of {count} elements{wire}"),
            Kind::Broadcast => write!(
                f,
                "operation {number}, broadcast of {count} elements from rank {}",
                self.root
            ),
            Kind::AllGather => write!(f, "operation {number}, all-gather of {count} bytes"),
            Kind::Barrier => write!(f, "operation {number}, barrier"),
            Kind::Close => write!(f, "operation {number}, close"),
        }
    }
}

/// A rank and what it was last known to be at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who.
    pub member: Member,
    /// The newest operation it has begun, as far as is known here.
    pub operation: Operation,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.member, self.operation)
    }
}

/// One line a rank.
pub(crate) fn list(standings: &[Standing]) -> String {
    standings.iter().map(|standing| format!("\n  {standing}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire_and_refuses_noise() {
        for kind in Kind::ALL {
            for wire in [Wire::F32, Wire::Bf16] {
                let operation = Operation {
                    number: 7,
                    kind,
                    wire,
                    root: 513,
                    count: u64::MAX,
                };
                assert_eq!(Operation::decode(&operation.encode()), Some(operation));
            }
        }
        assert_eq!(Operation::decode(&[0; 24]), None);
        let mut bytes = Operation::NONE.encode();
        bytes[8] = 6;
        assert_eq!(Operation::decode(&bytes), None, "no such kind");
        bytes[8] = 0;
        bytes[9] = 2;
        assert_eq!(Operation::decode(&bytes), None, "no such form");
    }

    #[test]
    fn only_what_is_gathered_may_differ_in_length() {
        let of = |kind, count| Operation {
            number: 1,
            kind,
            count,
            ..Operation::NONE
        };
        assert!(of(Kind::AllGather, 1).agrees(of(Kind::AllGather, 2)));
        assert!(!of(Kind::AllReduce, 1).agrees(of(Kind::AllReduce, 2)));
        assert!(!of(Kind::AllReduce, 1).agrees(of(Kind::Broadcast, 1)));
    }
}
