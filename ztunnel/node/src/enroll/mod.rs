//! Enrollment: the table of this node's pods, and the one interface through which every source of enrollment
//! (the local API today) changes it.
//!
//! Keyed by pod uid and idempotent: asking for what is already so succeeds. Each refusal has a reason. A request
//! that is under way is finished even when its caller goes away.

mod kernel;
mod local_api;
mod measure;
mod record;
mod table;

use std::io;
use std::path::PathBuf;

pub(crate) use local_api::glance;
pub use local_api::{Answerers, ApiError, ApiListener, Outcome, Request, call, call_list};
pub use table::{EnrollRequest, Enroller, PodState, PodStatus};

use crate::capture::CaptureError;

/// Why a pod was not enrolled or unenrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(
        "{uid:?} is no pod uid: at most 128 letters, digits, dots, dashes and underscores are accepted"
    )]
    InvalidUid { uid: String },
    #[error("open the network namespace {path}")]
    Netns { path: PathBuf, source: io::Error },
    #[error("{path} is the network namespace of the node; host-network pods cannot be enrolled")]
    HostNetwork { path: PathBuf },
    #[error(
        "the network namespace {path} belongs to the enrolled pod {uid}; unenroll that one first"
    )]
    NetnsTaken { path: PathBuf, uid: String },
    #[error("inspect the network namespace {path}")]
    Inspect { path: PathBuf, source: io::Error },
    #[error(
        "the network namespace {path} has no address yet; enroll the pod after its network is set up"
    )]
    NoAddress { path: PathBuf },
    #[error("pod {uid} is being unenrolled; try again when it is done")]
    Leaving { uid: String },
    #[error("capture of pod {uid} could not be repaired: {defect}")]
    Defect { uid: String, defect: &'static str },
    #[error("open the listeners in the pod")]
    Listen(#[source] io::Error),
    #[error("set up policy routing in the pod")]
    Routing(#[source] io::Error),
    #[error("write the record of the pod")]
    Record(#[source] io::Error),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("the daemon is stopping")]
    Stopping,
}

impl EnrollError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidUid { .. } => "INVALID_UID",
            Self::Netns { .. } => "NETNS_UNAVAILABLE",
            Self::HostNetwork { .. } => "HOST_NETWORK",
            Self::NetnsTaken { .. } => "NETNS_TAKEN",
            Self::Inspect { .. } => "NETNS_UNREADABLE",
            Self::NoAddress { .. } => "NO_ADDRESS",
            Self::Leaving { .. } => "LEAVING",
            Self::Defect { .. } => "DEFECTIVE",
            Self::Listen(_) => "LISTENERS_FAILED",
            Self::Routing(_) => "ROUTING_FAILED",
            Self::Record(_) => "RECORD_FAILED",
            Self::Capture(_) => "CAPTURE_FAILED",
            Self::Stopping => "STOPPING",
        }
    }
}
