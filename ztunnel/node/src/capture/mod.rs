//! Capture in the kernel: which pods, and through which sockets.
//!
//! Everything is pinned below one directory of the BPF file system, so capture outlives the daemon: while none
//! runs, new connections of enrolled pods fail instead of leaving in plaintext, and the next daemon takes the
//! pods over. The directory carries the version of the map layouts.
//!
//! ```text
//! <dir>/v<ABI>/PODS DAEMON connect4 connect6           the node's maps and links
//! <dir>/v<ABI>/<netns cookie>/LISTENERS SETTINGS link   one pod's
//! ```

mod node;
mod objects;
mod pod;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use node::{NodeCapture, NodeClaim};
pub use pod::{ListenerSet, PodCapture, PodCaptures, settings};

/// Why capture could not be set up, changed or inspected.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("prepare {path} for pinned programs")]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "another daemon captures on this node and holds {path}; stop it first, or give this one another directory"
    )]
    Taken { path: PathBuf },
    #[error("load the capture program of {object}")]
    Load {
        object: &'static str,
        source: aya::EbpfError,
    },
    #[error("load and attach the {program} program")]
    Attach {
        program: &'static str,
        source: aya::programs::ProgramError,
    },
    #[error("pin {path}")]
    Pin {
        path: PathBuf,
        source: aya::pin::PinError,
    },
    #[error("access {path}")]
    Path { path: PathBuf, source: io::Error },
    #[error("update the {map} map")]
    Map {
        map: &'static str,
        source: aya::maps::MapError,
    },
    #[error("the capture program of {object} lacks {item}; it was built from another version")]
    Mismatch {
        object: &'static str,
        item: &'static str,
    },
}
