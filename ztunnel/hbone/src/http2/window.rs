//! Flow control: RFC 9113 section 5.2.

/// The largest window: section 6.9.1.
pub(crate) const LARGEST: u32 = i32::MAX as u32;

/// What both sides begin with: section 6.9.2.
pub(crate) const INITIAL: u32 = 65_535;

/// What the peer may send, in one stream or in all. The size it is held at is the caller's: it is the same for many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Incoming {
    /// What the peer may send now, as far as it knows. Below nothing when the window got smaller since.
    left: i32,
    /// What it has sent and nobody has taken.
    held: u32,
}

impl Incoming {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            left: i32::try_from(size).unwrap_or(i32::MAX),
            held: 0,
        }
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    #[cfg(test)]
    pub(crate) fn left(&self) -> i32 {
        self.left
    }

    /// The peer has sent so much. False if that was more than it might.
    pub(crate) fn receive(&mut self, len: u32) -> bool {
        let left = i64::from(self.left) - i64::from(len);
        match i32::try_from(left) {
            Ok(left) if left >= 0 || len == 0 => self.left = left,
            _ => return false,
        }
        self.held = self.held.saturating_add(len);
        true
    }

    /// So much of it was taken, or thrown away.
    pub(crate) fn release(&mut self, len: u32) {
        self.held = self.held.saturating_sub(len);
    }

    /// The peer has agreed to a window that differs by so much.
    pub(crate) fn resize(&mut self, by: i64) {
        let left = i64::from(self.left) + by;
        self.left = left.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    }

    /// By how much the window of the peer is to be opened, so that it may send as much as fits into `size`. Told when it is
    /// at least half of what the peer has left: not for each byte, and soon enough that it need not wait.
    pub(crate) fn open(&mut self, size: u32) -> Option<u32> {
        let due = i64::from(size) - i64::from(self.held) - i64::from(self.left);
        if due <= 0 || due < i64::from(self.left / 2) {
            return None;
        }
        let due = due.min(LARGEST.into());
        self.resize(due);
        u32::try_from(due).ok()
    }
}

/// What may be sent to the peer, in one stream or in all. Below nothing when the peer's window got smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing(i32);

impl Outgoing {
    pub(crate) fn new(size: u32) -> Self {
        Self(i32::try_from(size).unwrap_or(i32::MAX))
    }

    pub(crate) fn left(self) -> i64 {
        self.0.into()
    }

    /// How much of `len` may be sent now.
    pub(crate) fn fit(self, len: usize) -> usize {
        len.min(usize::try_from(self.0).unwrap_or(0))
    }

    pub(crate) fn send(&mut self, len: usize) {
        let len = i32::try_from(len).unwrap_or(i32::MAX);
        self.0 = self.0.saturating_sub(len);
    }

    /// False if it is more than there can be: section 6.9.1.
    #[must_use]
    pub(crate) fn resize(&mut self, by: i64) -> bool {
        match i32::try_from(i64::from(self.0) + by) {
            Ok(left) => self.0 = left,
            Err(_) => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_opens_when_it_is_worth_it() {
        let mut window = Incoming::new(100);
        assert_eq!(window.open(100), None);
        assert!(window.receive(60));
        window.release(10);
        assert_eq!(window.open(100), None);
        window.release(10);
        assert_eq!(window.open(100), Some(20));
        assert_eq!((window.left, window.held()), (60, 40));
        // A peer that has nothing left is told of each byte.
        assert!(window.receive(60));
        window.release(1);
        assert_eq!(window.open(100), Some(1));
        assert_eq!(window.open(100), None);
    }

    #[test]
    fn nobody_sends_more_than_the_window() {
        let mut window = Incoming::new(100);
        assert!(!window.receive(101));
        assert!(window.receive(100));
        assert!(window.receive(0));
        assert!(!window.receive(1));
    }

    #[test]
    fn a_window_that_got_smaller_opens_again_once_it_is_empty() {
        let mut window = Incoming::new(100);
        assert!(window.receive(80));
        window.resize(-50);
        assert_eq!(window.left, -30);
        assert!(window.receive(0));
        assert!(!window.receive(1));
        assert_eq!(window.open(50), None);
        window.release(80);
        assert_eq!(window.open(50), Some(80));
        assert_eq!(window.left, 50);
    }

    #[test]
    fn what_may_be_sent_has_a_largest_size_and_may_be_below_nothing() {
        let mut window = Outgoing::new(INITIAL);
        assert!(window.resize(i64::from(LARGEST - INITIAL)));
        assert!(!window.resize(1));
        window.send(LARGEST as usize);
        assert_eq!(window.left(), 0);
        assert!(window.resize(-5));
        assert_eq!((window.left(), window.fit(9)), (-5, 0));
        assert!(window.resize(7));
        assert_eq!(window.fit(9), 2);
    }
}
