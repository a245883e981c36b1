//! What the tests of the page need, and the picture of it: a browser without a window (100 MB to download), and a font.

use super::apt;
use crate::shell::Outcome;

/// Either will do; without any, the one that brings less.
const BROWSERS: [&str; 2] = ["chromium-headless-shell", "chromium"];
const FONT: &str = "fonts-inter";

pub(crate) fn browser() -> Outcome {
    let mut missing = apt::Installed::read().lacks(&[FONT]);
    if BROWSERS.iter().all(|name| apt::program(name).is_none()) {
        missing.push(BROWSERS[0].to_owned());
    }
    apt::install(&missing)
}
