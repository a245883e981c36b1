//! Why a tunnel was cut by this side, for its streams to tell.

use std::cell::Cell;
use std::rc::Rc;

use ztunnel_mesh::reason::Reason;

/// Shared by a tunnel and its streams, on one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut(Rc<Cell<Option<Reason>>>);

impl Cut {
    /// Cuts it: from now on no stream gives or takes another byte.
    pub(super) fn set(&self, reason: Reason) {
        self.0.set(Some(reason));
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        self.0.get()
    }
}
