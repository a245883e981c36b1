//! Why a tunnel was cut by this side, for its streams to tell.

use std::cell::Cell;
use std::rc::Rc;

use ztunnel_mesh::reason::Reason;

/// Shared by a tunnel and its streams, on one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut {
    own: Rc<Cell<Option<Reason>>>,
    /// That of the tunnel around it.
    outer: Option<Rc<Cell<Option<Reason>>>>,
}

impl Cut {
    /// Of a tunnel inside of one that has `outer`. There is nothing around that.
    pub(super) fn inside(outer: &Self) -> Self {
        Self {
            own: Rc::default(),
            outer: Some(Rc::clone(&outer.own)),
        }
    }

    /// Cuts it: from now on no stream gives or takes another byte.
    pub(super) fn set(&self, reason: Reason) {
        self.own.set(Some(reason));
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        let outer = || self.outer.as_ref().and_then(|outer| outer.get());
        self.own.get().or_else(outer)
    }
}
