//! OpenTelemetry: a span for each request that runs the model, with the GenAI conventions' names and vLLM's latencies.
//!
//! The span belongs to all that works on its request, and ends with the last of them: of a stream, when its last event
//! is on its way. Neither prompts and answers nor keys are ever in it.

// The SDK takes longer to build than most of the crate, so it is a feature. Without it the same types have no values.
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(feature = "otlp")]
pub use self::otlp::{RequestSpan, Traces};

#[cfg(not(feature = "otlp"))]
mod absent;
#[cfg(not(feature = "otlp"))]
pub use self::absent::{RequestSpan, Traces};

use super::metrics::Timing;
use super::wire::Usage;

/// The client's span, of W3C's trace context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Of the trace: 32 hexadecimal digits, not all 0.
    pub trace: String,
    /// Of the span: 16 of them.
    pub span: String,
    /// Whether the client keeps it.
    pub is_sampled: bool,
    /// What else its vendors say, if they do.
    pub state: Option<String>,
}

/// What came of a request's sequences.
pub struct Generated<'a> {
    /// Tokens.
    pub usage: Usage,
    /// When things happened to each.
    pub timings: Vec<&'a Timing>,
    /// Why they ended; none where nothing is generated.
    pub reasons: Vec<&'static str>,
}
