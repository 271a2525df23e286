//! Models from files: formats, refusals, damage, and pulling.

mod damage;
mod formats;
mod pull;
mod refusals;
mod writer;
