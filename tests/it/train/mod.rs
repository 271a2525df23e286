//! Training: its data, what is seen of a run, and what a run would take.

mod data;
mod plan;
mod python;
mod render;
mod samples;
mod watch;
