//! Programs are in the state that a test has put them in.

use std::fs;

use lab::Lab;
use nix::sys::signal::Signal;

use crate::SHOP;

#[test]
fn a_program_has_stopped_when_the_signal_was_sent() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let node = lab.node("node1");
    // More than there are processors: most wait for theirs when the signal is sent.
    let spinning = || node.spawn(["sh", "-c", "while :; do :; done"]).unwrap();
    let mut spinning: Vec<_> = (0..32).map(|_| spinning()).collect();
    for program in &mut spinning {
        program.signal(Signal::SIGSTOP).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap();
        assert!(stat.contains(") T "), "{stat}");
        program.signal(Signal::SIGCONT).unwrap();
    }
}
