//! A log that tests read.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use super::log::{self, Log};
use super::{LogFormat, access};

/// What was written so far.
#[derive(Clone, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub(crate) fn start() -> (Log, Self) {
        Self::start_as(LogFormat::Plain)
    }

    pub(crate) fn start_as(format: LogFormat) -> (Log, Self) {
        let (log, items) = Log::new();
        let (written, counts) = (Self::default(), log.counts());
        let (to, failures) = (written.clone(), log.failures().clone());
        thread::spawn(move || log::write_all(&items, to, format, &counts, &failures));
        (log, written)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The access log.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = self.text();
        let target = format!("\t{}\t", access::TARGET);
        let lines = text.lines().filter(|line| line.contains(&target));
        lines.map(str::to_owned).collect()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
