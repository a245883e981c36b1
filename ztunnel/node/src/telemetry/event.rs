//! Events of `tracing` as lines of the log.

use std::fmt::{self, Display, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::line::{Json, Line, Plain};
use super::log::{Item, Log, LogFormat};

/// Puts every event into the log.
pub(super) struct EventLines {
    log: Log,
    format: LogFormat,
}

impl EventLines {
    pub(super) fn new(log: Log, format: LogFormat) -> Self {
        Self { log, format }
    }
}

/// The fields of a span or an event, in their order.
#[derive(Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

enum Value {
    Text(String),
    /// Its form says where it ends.
    Bare(String),
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::Text(value.into()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, Value::Text(super::chain(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.message, "{value:?}");
        } else {
            self.add(field, Value::Bare(format!("{value:?}")));
        }
    }
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }

    fn write(&self, line: &mut dyn Line) {
        for (name, value) in &self.fields {
            match value {
                Value::Text(text) => line.text(name, text),
                // With a space in it, nobody could tell where it ends.
                Value::Bare(text) if text.contains(char::is_whitespace) => line.text(name, text),
                Value::Bare(text) => line.value(name, text),
            }
        }
    }
}

impl<S> Layer<S> for EventLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (at, metadata) = (SystemTime::now(), event.metadata());
        let spans = context.event_scope(event).into_iter();
        let spans = spans.flat_map(|scope| scope.from_root());
        let mut text = Vec::with_capacity(256);
        match self.format {
            LogFormat::Plain => {
                let mut target = super::line::short(metadata.target()).to_owned();
                for span in spans {
                    let extensions = span.extensions();
                    let fields = extensions.get::<Fields>();
                    let _ = write!(target, ":{}{}", span.name(), Braces(fields));
                }
                let mut line = Plain::new(&mut text);
                line.begin(at, *metadata.level(), &target, &fields.message);
                fields.write(&mut line);
                line.end();
            }
            LogFormat::Json => {
                let mut line = Json::new(&mut text);
                line.begin(at, *metadata.level(), metadata.target(), &fields.message);
                fields.write(&mut line);
                for span in spans {
                    let extensions = span.extensions();
                    let fields = extensions.get::<Fields>();
                    let fields = fields.map_or(&[][..], |fields| &fields.fields);
                    line.object(
                        span.name(),
                        fields.iter().map(|(name, value)| (*name, value.as_str())),
                    );
                }
                line.end();
            }
        }
        self.log.put(Item::Line(text));
    }
}

impl Value {
    fn as_str(&self) -> &str {
        let (Self::Text(text) | Self::Bare(text)) = self;
        text
    }
}

/// `{name=value name="text"}`, or nothing.
struct Braces<'a>(Option<&'a Fields>);

impl Display for Braces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(fields) = self.0.filter(|fields| !fields.fields.is_empty()) else {
            return Ok(());
        };
        for (at, (name, value)) in fields.fields.iter().enumerate() {
            f.write_str(if at == 0 { "{" } else { " " })?;
            match value {
                Value::Text(text) => write!(f, "{name}={text:?}")?,
                Value::Bare(text) => write!(f, "{name}={text}")?,
            }
        }
        f.write_str("}")
    }
}
