//! The one error of the lab: what it was doing, and why that failed.
//!
//! A test wants a sentence, not a choice between variants, so there is one type. Its `Debug` prints the whole
//! chain of causes: that is what `unwrap` and the test harness show.

use std::error::Error;
use std::fmt;

/// What the lab's operations return.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

type Cause = Box<dyn Error + Send + Sync>;

/// An operation of the lab failed.
#[derive(thiserror::Error)]
#[error("{doing}")]
pub struct LabError {
    doing: String,
    source: Option<Cause>,
}

impl LabError {
    /// An error that is its own cause.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            doing: what.into(),
            source: None,
        }
    }

    /// `doing` failed because of `cause`.
    pub fn because(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self {
            doing: doing.into(),
            source: Some(cause.into()),
        }
    }

    /// The whole chain in one line, outermost first.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.doing.clone();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Debug for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain())
    }
}

/// Says what was being done when a `Result` turned out to be an error.
pub trait Doing<T> {
    /// Wraps the error with a description, built only when there is an error.
    ///
    /// # Errors
    /// The same ones, described.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Cause>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| LabError::because(what(), cause))
    }
}
