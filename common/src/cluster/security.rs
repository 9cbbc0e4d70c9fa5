//! `coati.security` and `coati.on_nan`: what a cluster file says about who may take part, and about broken gradients.

use std::path::PathBuf;

use serde::Serialize;

use crate::rpc::security::{OwnCertificate, Sources};

/// `coati.security`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Security {
    /// `tls`: tasks talk through mutual TLS. On unless it is switched off; the job's token is asked for in either case.
    pub tls: bool,
    /// `ca`, `cert` and `key`. None: coati makes them for the job.
    pub own: Option<OwnCertificate>,
    /// `token_file`. None: coati makes one for the job.
    pub token_file: Option<PathBuf>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            tls: true,
            own: None,
            token_file: None,
        }
    }
}

impl Security {
    /// Where a task finds its credentials, `folder` being the one that coati makes for the job.
    pub fn sources(&self, folder: PathBuf) -> Sources {
        Sources {
            tls: self.tls,
            own: self.own.clone(),
            token_file: self.token_file.clone(),
            ..Sources::of_folder(folder)
        }
    }
}

/// `coati.on_nan`: what becomes of a gradient that holds NaN or infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNan {
    /// The job ends and says which replica, step and variable.
    #[default]
    Stop,
    /// The replica's contribution to that step is dropped, its records go back.
    Skip,
    /// It is applied like any other.
    Apply,
}
