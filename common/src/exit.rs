//! What the exit status of a `coati` process means. This is the one place that knows the numbers.

use std::fmt;

/// How a command ended, as its exit status tells it to shells and schedulers.
///
/// ```
/// use coati_common::exit::ExitCode;
/// assert_eq!(ExitCode::UserError.code(), 2);
/// assert_eq!(ExitCode::from_code(124), Some(ExitCode::TimeLimit));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// 0: everything asked for was done.
    Success,
    /// 1: the job started and failed (a task crashed, a peer stayed away, the disk is full). Running the same command
    /// again goes on from the last checkpoint.
    JobFailure,
    /// 2: refused before anything started: a flag, a file or a topology is wrong. Running it again unchanged is useless.
    UserError,
    /// 124: `scheduling.maxRunningTime` of the cluster file was reached; the job was stopped in order, with a checkpoint.
    /// The number is the one that `timeout(1)` uses.
    TimeLimit,
    /// 130: stopped by Ctrl-C or SIGTERM. After the first signal a checkpoint was written; after a second one perhaps not.
    Interrupted,
}

impl ExitCode {
    /// Every meaning, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Success,
        Self::JobFailure,
        Self::UserError,
        Self::TimeLimit,
        Self::Interrupted,
    ];

    /// The number that the process leaves behind.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::JobFailure => 1,
            Self::UserError => 2,
            Self::TimeLimit => 124,
            Self::Interrupted => 130,
        }
    }

    /// The meaning of a number, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::JobFailure => "job failure",
            Self::UserError => "user error",
            Self::TimeLimit => "time limit reached",
            Self::Interrupted => "interrupted",
        })
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(exit: ExitCode) -> Self {
        Self::from(exit.code())
    }
}

impl std::process::Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::ExitCode;

    #[test]
    fn numbers_are_the_documented_ones_and_come_back() {
        let numbers: Vec<u8> = ExitCode::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(numbers, [0, 1, 2, 124, 130]);
        for exit in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(ExitCode::from_code(3), None);
        assert_eq!(ExitCode::from_code(-1), None);
    }
}
