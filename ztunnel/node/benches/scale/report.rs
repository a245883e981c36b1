//! What was measured, against what it should be.

use std::process::exit;
use std::time::Duration;

/// Beyond a target by this factor is no noise.
const FAR: f64 = 1.5;

#[derive(Default)]
pub(crate) struct Report {
    missed: Vec<String>,
}

impl Report {
    pub(crate) fn fact(&mut self, name: &str, value: String) {
        println!("{name:<66} {value:>14}");
    }

    pub(crate) fn target(&mut self, name: &str, value: f64, unit: &str, target: f64) {
        println!("{name:<66} {value:>11.2} {unit:<3} target {target} {unit}");
        if value > target * FAR {
            self.missed.push(name.to_owned());
        }
    }

    pub(crate) fn finish(self) {
        if !self.missed.is_empty() {
            println!("\nfar from the target: {}", self.missed.join("; "));
            exit(1);
        }
    }
}

pub(crate) fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort_unstable();
    let place = (times.len() as f64 * q) as usize;
    times[place.min(times.len() - 1)]
}
