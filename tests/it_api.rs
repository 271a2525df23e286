#[path = "it/http/mod.rs"]
mod http;
