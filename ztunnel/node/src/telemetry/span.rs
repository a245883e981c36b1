//! Spans of connections: who a line of the log is about.
//!
//! Invariant: while nobody wants to know, a span is a load of what is wanted, and a comparison at every poll. Whoever
//! makes one writes `debug_span!` in the module that serves the connection, so that the filter that asks for the module's
//! lines asks for its spans.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tracing::Span;

pin_project! {
    /// Work in a span. A connection has it for as long as it lasts: without a span it takes no more room than a pointer.
    #[must_use = "futures do nothing unless polled"]
    pub struct Within<F> {
        #[pin]
        work: F,
        span: Option<Box<Span>>,
    }
}

/// Runs `work` in `span`.
pub fn within<F: Future>(span: Span, work: F) -> Within<F> {
    let span = (!span.is_disabled()).then(|| Box::new(span));
    Within { work, span }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.span.as_ref().map(|span| span.enter());
        this.work.poll(cx)
    }
}
