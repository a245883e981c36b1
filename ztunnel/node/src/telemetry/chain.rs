//! Errors in words.

use std::error::Error;
use std::fmt::Write as _;

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("connect to {0} failed")]
        struct Outer(u8, #[source] io::Error);
        let error = Outer(7, io::Error::other("no way"));
        assert_eq!(chain(&error), "connect to 7 failed: no way");
    }
}
