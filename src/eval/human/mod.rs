//! People as judges: a page that shows two answers and does not tell whose they are.

mod server;
mod study;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::EvalError;
use super::answers::{Named, read_all};
use super::run::say;
use super::store::write_rows;

pub use server::{router, serve};
pub use study::{Choice, Item, Study};

/// `human`.
#[derive(Args, Clone, Debug)]
pub struct Human {
    /// Two systems: NAME=PATH of `generate`'s directory or of a file of answers
    #[arg(required = true, num_args = 2.., value_name = "NAME=PATH")]
    pub systems: Vec<Named>,
    /// Where decisions are kept, each at once
    #[arg(long, value_name = "FILE")]
    pub db: PathBuf,
    /// Write the decisions as verdicts, which `agreement` reads, instead of showing the page
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Address of the page; whoever reaches it may judge
    #[arg(long, default_value = "127.0.0.1:8010")]
    pub listen: SocketAddr,
    /// Of the order of prompts and sides, which each person has of their own
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

pub(super) fn run(flags: &Human) -> Result<(), EvalError> {
    let [one, other] = flags.systems.as_slice() else {
        return Err(EvalError::Usage("the page compares two systems".into()));
    };
    let systems = read_all(&[one.clone(), other.clone()])?;
    let study = Study::open(&flags.db, &systems[0], &systems[1], flags.seed)?;
    if let Some(path) = &flags.export {
        let verdicts = study.verdicts()?;
        write_rows(path, &verdicts)?;
        say(&format!("{} decisions in {}", verdicts.len(), path.display()));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    let runtime = runtime.map_err(|e| EvalError::Usage(format!("the page's server cannot start: {e}")))?;
    let cannot = |e: std::io::Error| EvalError::Usage(format!("cannot listen on {}: {e}", flags.listen));
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(flags.listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        say(&format!("judging {} prompts on http://{address}", study.len()));
        serve(listener, Arc::new(study)).await.map_err(cannot)
    })
}
