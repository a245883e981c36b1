//! Spans of connections: who a line of the log is about.
//!
//! Invariant: while nobody wants to know, a span is a load of what is wanted, and a comparison at every poll. Whoever
//! makes one writes `debug_span!` in the module that serves the connection, so that the filter that asks for the module's
//! lines asks for its spans.

use std::pin::Pin;

use tracing::{Instrument as _, Span};

/// Runs `work` in `span`. Takes no more room than a pointer to it: a connection has its future for as long as it lasts.
pub async fn within<F: Future>(span: Span, work: Pin<&mut F>) -> F::Output {
    if span.is_disabled() {
        work.await
    } else {
        work.instrument(span).await
    }
}
