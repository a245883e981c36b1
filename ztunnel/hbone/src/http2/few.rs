//! A queue that mostly has one element or none, in many places at once.

use std::collections::VecDeque;

/// Has no memory besides its own while there is one element at most.
#[derive(Debug)]
pub(super) struct Few<T> {
    first: Option<T>,
    #[expect(
        clippy::box_collection,
        reason = "a queue has four words, and there mostly is none"
    )]
    more: Option<Box<VecDeque<T>>>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self {
            first: None,
            more: None,
        }
    }
}

impl<T> Few<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn push(&mut self, one: T) {
        match self.first {
            None => self.first = Some(one),
            Some(_) => self.more.get_or_insert_default().push_back(one),
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let first = self.first.take();
        if let Some(more) = &mut self.more {
            self.first = more.pop_front();
            if more.is_empty() {
                self.more = None;
            }
        }
        first
    }

    pub(super) fn first_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        match &mut self.more {
            Some(more) => more.back_mut(),
            None => self.first.as_mut(),
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let more = self.more.iter().flat_map(|more| more.iter());
        self.first.iter().chain(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_queue() {
        let mut few = Few::default();
        for count in [1, 2, 5, 1] {
            for number in 0..count {
                few.push(number);
                assert_eq!(few.last_mut(), Some(&mut { number }));
            }
            assert_eq!(
                few.iter().copied().collect::<Vec<_>>(),
                (0..count).collect::<Vec<_>>()
            );
            for number in 0..count {
                assert_eq!(few.first_mut(), Some(&mut { number }));
                assert_eq!(few.pop(), Some(number));
            }
            assert!(few.is_empty() && few.pop().is_none() && few.last_mut().is_none());
            assert!(few.more.is_none());
        }
    }
}
