//! Log lines in the two forms that Istio's node proxy has: plain with tabs between the parts, and JSON.

use std::fmt::{self, Display};
use std::io::Write as _;
use std::time::SystemTime;

use time::OffsetDateTime;
use tracing::Level;

/// One line, field by field in their order. A text that is empty is left out.
pub(super) trait Line {
    fn begin(&mut self, at: SystemTime, level: Level, target: &str, message: &str);
    /// Something whose form says where it ends: an address.
    fn value(&mut self, name: &str, value: &dyn Display);
    fn number(&mut self, name: &str, value: u64);
    fn text(&mut self, name: &str, text: &str);
    fn end(&mut self);

    fn maybe(&mut self, name: &str, text: Option<&dyn Display>) {
        if let Some(text) = text {
            self.text(name, &text.to_string());
        }
    }
}

/// `time<TAB>level<TAB>target<TAB>message<TAB>name=value name="text"`
pub(super) struct Plain<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

/// `{"level":…,"time":…,"scope":…,"message":…,"name":value}`
pub(super) struct Json<'a>(&'a mut Vec<u8>);

impl<'a> Plain<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, first: true }
    }
}

// Nothing here fails: it is memory that is written to.

impl Line for Plain<'_> {
    fn begin(&mut self, at: SystemTime, level: Level, target: &str, message: &str) {
        let _ = write!(self.out, "{}\t{}\t", Time(at), name(level));
        let _ = write!(self.out, "{}\t{message}\t", short(target));
        self.first = true;
    }

    fn value(&mut self, name: &str, value: &dyn Display) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b' ');
        }
        let _ = write!(self.out, "{name}={value}");
    }

    fn number(&mut self, name: &str, value: u64) {
        self.value(name, &value);
    }

    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.value(name, &format_args!("{text:?}"));
        }
    }

    fn end(&mut self) {
        self.out.push(b'\n');
    }
}

impl Line for Json<'_> {
    fn begin(&mut self, at: SystemTime, level: Level, target: &str, message: &str) {
        let _ = write!(
            self.0,
            "{{\"level\":\"{}\",\"time\":\"{}\",\"scope\":",
            name(level),
            Time(at)
        );
        self.string(target);
        self.0.extend_from_slice(b",\"message\":");
        self.string(message);
    }

    fn value(&mut self, name: &str, value: &dyn Display) {
        self.text(name, &value.to_string());
    }

    fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        let _ = write!(self.0, "{value}");
    }

    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.key(name);
            self.string(text);
        }
    }

    fn end(&mut self) {
        self.0.extend_from_slice(b"}\n");
    }
}

impl<'a> Json<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    pub(super) fn object<'b>(
        &mut self,
        name: &str,
        fields: impl Iterator<Item = (&'b str, &'b str)>,
    ) {
        self.key(name);
        for (at, (name, value)) in fields.enumerate() {
            self.0.push(if at == 0 { b'{' } else { b',' });
            self.string(name);
            self.0.push(b':');
            self.string(value);
        }
        if self.0.ends_with(b":") {
            self.0.push(b'{');
        }
        self.0.push(b'}');
    }

    fn key(&mut self, name: &str) {
        self.0.push(b',');
        self.string(name);
        self.0.push(b':');
    }

    fn string(&mut self, text: &str) {
        let _ = serde_json::to_writer(&mut *self.0, text);
    }
}

const fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// Our own crates have long names, which would be on every line.
pub(super) fn short(target: &str) -> &str {
    let own = ["ztunnel_node::", "ztunnel::"];
    let stripped = own.iter().find_map(|own| target.strip_prefix(own));
    stripped.unwrap_or(target)
}

/// RFC 3339 in UTC with microseconds.
struct Time(SystemTime);

impl Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(self.0);
        let (date, time) = (at.date(), at.time());
        write!(
            f,
            "{:04}-{:02}-{:02}",
            date.year(),
            u8::from(date.month()),
            date.day()
        )?;
        let (hour, minute, second, micros) = time.as_hms_micro();
        write!(f, "T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}
