//! The flags that say which process of several this one is.

use std::env;
use std::thread;

use lima::parallel::{Explicit, World};

/// Of several processes. Without these flags the environment of torchrun, mpirun, srun, TrainJob, LeaderWorkerSet or JobSet says it
#[derive(clap::Args)]
pub struct Nodes {
    /// Processes that train together, one a node; 1 trains alone, whatever the environment says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Nodes")]
    pub nnodes: Option<u16>,
    /// Which of them this is, from 0
    #[arg(long, value_name = "N", requires = "nnodes", help_heading = "Nodes")]
    node_rank: Option<u16>,
    /// Host of the first, where the others meet
    #[arg(long, value_name = "HOST", help_heading = "Nodes")]
    master_addr: Option<String>,
    /// Port there [default: 29500; of Slurm's jobs, one made of the job's id]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Nodes")]
    master_port: Option<u16>,
    /// Seconds in which all of them must be there
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Nodes")]
    pub join_timeout: u32,
}

impl Nodes {
    /// What flags and environment say.
    pub fn world(&self) -> anyhow::Result<Option<World>> {
        let explicit = Explicit {
            nnodes: self.nnodes.map(usize::from),
            node_rank: self.node_rank.map(usize::from),
            master_addr: self.master_addr.clone(),
            master_port: self.master_port,
        };
        Ok(World::read(&explicit, |name| env::var(name).ok())?)
    }
}

/// Worker threads of one of several processes on this machine, which share its processors.
pub fn threads(world: &World) -> Option<usize> {
    let processors = thread::available_parallelism().map_or(1, |n| n.get());
    (world.local_size > 1).then(|| (processors / world.local_size).max(1))
}
