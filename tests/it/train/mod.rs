//! Training: its data, its loop, what is seen of a run, and what a run would take.

mod adapters;
mod checkpoint;
mod data;
mod numerics;
mod optimizer;
mod overfit;
mod parallel;
mod plan;
mod processes;
mod python;
mod recipe;
mod refusals;
mod render;
mod resume;
mod samples;
pub mod tiny;
mod watch;
