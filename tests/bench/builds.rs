//! Refuses programs that were not built as they are shipped.

use std::fs;
use std::path::Path;

use lab::{Doing as _, LabError, Result};
use memchr::memmem::find;

/// What a program says that checks its arithmetic, as a debug build does and a release build does not.
const CHECKED: &[u8] = b"attempt to add with overflow";

/// # Errors
/// When the running program is a debug build, or `daemon` is, or cannot be read.
pub(crate) fn refuse_debug(daemon: &Path) -> Result<()> {
    // The text is in this program in any case.
    if cfg!(debug_assertions) {
        return Err(refusal("the benchmark"));
    }
    let bytes = fs::read(daemon).doing(|| format!("read {}", daemon.display()))?;
    if is_checked(&bytes) {
        return Err(refusal(&daemon.to_string_lossy()));
    }
    Ok(())
}

fn is_checked(program: &[u8]) -> bool {
    find(program, CHECKED).is_some()
}

fn refusal(program: &str) -> LabError {
    LabError::new(format!(
        "{program} is a debug build: its figures would mean nothing (run `cargo xtask bench`, which builds what it needs)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_build_is_told_from_a_release_build() {
        let is_checked = |program: &Path| is_checked(&fs::read(program).unwrap());
        // Built like this test.
        assert_eq!(
            is_checked(&lab::daemon_binary().unwrap()),
            cfg!(debug_assertions)
        );
        let cargo = std::env::var_os("CARGO").unwrap();
        assert!(!is_checked(Path::new(&cargo)));
    }
}
