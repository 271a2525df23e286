//! Load test of OpenAI-compatible servers: docs/load-testing.md.
//!
//! `cargo bench --bench load -- [FLAGS]`; `--help` lists them.

#[path = "load/mod.rs"]
mod load;

fn main() -> std::process::ExitCode {
    load::main()
}
