//! What can go wrong between ranks, in words for people.

use std::time::Duration;

use crate::operation::list;
use crate::{Member, Operation, Standing};

/// Why ranks do not come together or do not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("{what}: {source}\nhint: {hint}")]
    Io {
        /// What was tried, with path or address.
        what: String,
        /// The system's answer.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A setting that cannot be.
    #[error("{what}\nhint: {hint}")]
    Setting {
        /// Which one, its value, and what would be right.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// Ranks that do not belong together: versions, world sizes, configurations, or two of one rank.
    #[error("{0}\nhint: start all ranks with the same program, world size and configuration, and each rank once")]
    Refused(String),
    /// Not all ranks came.
    #[error("after {:.1} s {} of {world_size} ranks are here{}; {missing} did not come{remark}\nhint: see whether that process runs and what it says, or raise the timeout of the rendezvous", waited.as_secs_f64(), here.len(), list_members(here))]
    NeverCame {
        /// How long was waited.
        waited: Duration,
        /// How many there should be.
        world_size: usize,
        /// Those that came.
        here: Vec<Member>,
        /// The others, in words.
        missing: String,
        /// What else was seen meanwhile, such as strangers on the port.
        remark: String,
    },
    /// Ranks that are alive, as far as is known, and did not come to the operation in time.
    #[error("waited {:.1} s for {}{}\nhint: see what that process does (its log, or a debugger), or raise the timeout", waited.as_secs_f64(), names(missing), list(standings))]
    Late {
        /// How long was waited.
        waited: Duration,
        /// For whom.
        missing: Vec<Member>,
        /// Where everybody is.
        standings: Vec<Standing>,
    },
    /// A rank whose process ended or whose host cannot be reached.
    #[error(
        "{member} is gone: {how}{}\nhint: its own log tells why (killed for memory, a crash); start all ranks again",
        list(standings)
    )]
    Lost {
        /// Who.
        member: Member,
        /// How that was noticed.
        how: String,
        /// Where everybody was.
        standings: Vec<Standing>,
    },
    /// A rank whose process is there and shows no sign of life.
    #[error(
        "{member} shows no sign of life for {:.1} s: it is stopped, or its host is{}\nhint: end that process (`kill -9`) and start the rank again",
        silence.as_secs_f64(),
        list(standings)
    )]
    Silent {
        /// Who.
        member: Member,
        /// For how long.
        silence: Duration,
        /// Where everybody was.
        standings: Vec<Standing>,
    },
    /// Somebody asked this rank to stop while it waited for others to come.
    #[error("stopped on request while waiting for the other ranks to come")]
    Stopped,
    /// Two ranks called different operations, or with different lengths.
    #[error(
        "{other} is at {theirs}, but {own} is at {ours}\nhint: all ranks must reduce the same buckets in the same order; a model or a bucket size differs"
    )]
    Mismatch {
        /// This rank.
        own: Member,
        /// What it called.
        ours: Operation,
        /// The other one.
        other: Member,
        /// What that one called.
        theirs: Operation,
    },
    /// What came is not of this protocol.
    #[error("{from} sent what is no operation of ours\nhint: ranks of different builds, or a stranger between them")]
    Garbage {
        /// Who.
        from: Member,
    },
    /// A rank gave up and said why.
    #[error("{by} gave up: {reason}")]
    Aborted {
        /// Who, or what is known of them.
        by: String,
        /// Its words.
        reason: String,
    },
    /// A bucket that was reduced in the background.
    #[error("{0}")]
    Bucket(String),
    /// NCCL or CUDA.
    #[error("{0}")]
    Gpu(String),
}

/// Begins the reason of [`Error::final_reason`].
const FINAL: &str = "for good: ";

/// Follows it where ranks do not belong together.
const REFUSED: &str = "refused: ";

impl Error {
    /// The reason to abort with where another start of this rank would fail as this one did: see [`Self::is_final`].
    pub fn final_reason(why: &str) -> String {
        format!("{FINAL}{why}")
    }

    /// What the others are told of this error when it ends a meeting.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Refused(_) => Self::final_reason(&format!("{REFUSED}{self}")),
            _ => self.to_string(),
        }
    }

    /// Whether ranks do not belong together, whoever of them found that out.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Aborted { reason, .. } => reason.contains(&format!("{FINAL}{REFUSED}")),
            _ => false,
        }
    }

    /// Whether meeting again cannot help: ranks that do not belong together, settings, a GPU's troubles, and what a rank said for good. A
    /// rank that was lost or hangs may be replaced.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Aborted { reason, .. } => reason.contains(FINAL),
            Self::Lost { .. } | Self::Late { .. } | Self::Silent { .. } | Self::NeverCame { .. } => false,
            _ => true,
        }
    }

    /// What a rank said for good, without the marks.
    pub fn for_people(&self) -> String {
        let text = self.to_string();
        if text.contains(FINAL) {
            text.replacen(FINAL, "", 1).replacen(REFUSED, "", 1)
        } else {
            text
        }
    }

    /// The ranks that others wait for in vain although their processes are there.
    pub fn hanging(&self) -> Vec<Member> {
        match self {
            Self::Silent { member, .. } => vec![member.clone()],
            Self::Late { missing, .. } => missing.clone(),
            _ => Vec::new(),
        }
    }

    /// Names the ranks that are not among `here`.
    pub(crate) fn never_came(world_size: usize, here: Vec<Member>, waited: Duration, remark: String) -> Self {
        let came = |rank: &usize| here.iter().any(|member| member.rank == *rank);
        let missing: Vec<String> = (0..world_size)
            .filter(|rank| !came(rank))
            .map(|rank| format!("rank {rank}"))
            .collect();
        Self::NeverCame {
            waited,
            world_size,
            missing: missing.join(", "),
            here,
            remark,
        }
    }

    pub(crate) fn io(what: impl Into<String>, hint: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source, hint }
    }
}

fn names(members: &[Member]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn list_members(members: &[Member]) -> String {
    if members.is_empty() {
        String::new()
    } else {
        format!(" ({})", names(members))
    }
}
