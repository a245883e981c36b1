//! Finds programs of this workspace.

use std::path::PathBuf;

use crate::error::{Doing, LabError, Result};

/// The program called `name`: what the variable says, or else the one beside the running program, be that a test in `deps/`
/// or a program of a profile, or in the target directory above.
pub(crate) fn find(name: &str, variable: &str, build: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().doing(|| "find the running program")?;
    own.ancestors()
        .skip(1)
        .take(3)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            LabError::new(format!(
                "find the program `{name}` beside {} (`{build}` makes it; or set {variable})",
                own.display()
            ))
        })
}
