//! The real binary with the default model, over real connections.

mod chat;
mod client;
mod lifecycle;
mod load;
mod page;
mod refusals;
