//! What a newcomer runs first.

use std::process::Command;

/// `cargo xtask demo` builds and then runs this program.
#[test]
fn the_demo_ends_with_success() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaints}");
    assert_eq!(
        said.lines().last(),
        Some("All as it should be."),
        "{said}{complaints}"
    );
    assert_eq!(complaints, "");
}
