//! The API with OpenTelemetry: the tests over real sockets once more, and the spans that a collector gets. Apart from
//! the others because of the feature: `cargo test --release --features otlp --test otlp`.

// A test may panic.
#![allow(clippy::unwrap_used)]

#[path = "it/constraints/mod.rs"]
mod constraints;
#[path = "it/http/mod.rs"]
mod http;
#[path = "it/support"]
mod support {
    pub mod description;
    pub mod otlp;
}
