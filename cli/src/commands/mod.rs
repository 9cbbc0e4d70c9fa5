//! One module a command.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod data;
pub(crate) mod detect;
pub(crate) mod eval;
pub(crate) mod eval_report;
pub(crate) mod infer;
pub(crate) mod inspect;
pub(crate) mod metrics;
pub(crate) mod scale;
pub(crate) mod status;
pub(crate) mod train;
