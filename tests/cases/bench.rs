//! The benchmark's program, which refuses to measure what nobody ships. What it does otherwise is in its own tests.

use std::process::Command;

#[test]
fn a_debug_build_is_not_measured() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg("--quick")
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{complaint}");
    assert!(complaint.contains("is a debug build"), "{complaint}");
}
