//! `train --dry-run`.

use lima::config::ByteSize;
use lima::train::plan::ask::{Ask, of_run, of_shape};
use lima::train::plan::{Layout, Links, Plan, shape};
use lima::train::{Base, Choices, Options, Prepared};

/// What is planned for.
#[derive(clap::Args)]
pub struct Dry {
    /// Print what the run would take (parameters, memory, steps, time) and end. Without --data it is LIMA's
    #[arg(long, help_heading = "Planning")]
    pub dry_run: bool,
    /// Plan for a shape instead of a base: 65b, 30b, 13b, 7b, 1.1b, 135m or a config.json
    #[arg(long, value_name = "SHAPE", requires = "dry_run", conflicts_with_all = ["base", "data"], help_heading = "Planning")]
    pub shape: Option<String>,
    /// Plan for so many GPUs instead of this machine's processor
    #[arg(long, value_name = "N", requires = "dry_run", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Planning")]
    pub gpus: Option<u16>,
    /// Memory of each [default: 80GiB]
    #[arg(long, value_name = "SIZE", requires = "gpus", help_heading = "Planning")]
    gpu_memory: Option<ByteSize>,
    /// The part of the peak that training is assumed to reach, recomputation counted
    #[arg(long, value_name = "X", requires = "dry_run", value_parser = part, help_heading = "Planning")]
    utilisation: Option<f64>,
    /// GB a second that a rank sends inside a node, with --nnodes [default: 450, of processors 10]
    #[arg(long, value_name = "GB/S", requires = "nnodes", value_parser = rate, help_heading = "Planning")]
    rank_link: Option<f64>,
    /// GB a second that a node sends to others, with --nnodes [default: 50, of processors 1.25]
    #[arg(long, value_name = "GB/S", requires = "nnodes", value_parser = rate, help_heading = "Planning")]
    node_link: Option<f64>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate < 1e9 => Ok(rate),
        _ => Err("a number above 0 is needed".into()),
    }
}

/// An H100's NVLink in one direction and a 400 Gbit/s port a node (NVIDIA's data sheets); copies in memory and 10 Gbit/s.
const GPU_LINKS: [f64; 2] = [450e9, 50e9];
const CPU_LINKS: [f64; 2] = [10e9, 1.25e9];

const MEMORY: ByteSize = ByteSize(80 << 30);

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(part),
        _ => Err("a number above 0 and at most 1 is needed".into()),
    }
}

impl Dry {
    /// The question, but for the recipe.
    pub fn ask(
        &self,
        peak_flops: Option<f64>,
        threads: Option<usize>,
        layout: Layout,
        nodes: usize,
    ) -> anyhow::Result<Ask> {
        let gpus = self.gpus.map(|count| (usize::from(count), self.gpu_memory.unwrap_or(MEMORY).0));
        let (layout, ranks) = ((layout != Layout::ONE).then_some(layout), layout.ranks());
        let [inside, between] = if gpus.is_some() { GPU_LINKS } else { CPU_LINKS };
        let given = |rate: Option<f64>, usual| rate.map_or(usual, |gb| gb * 1e9);
        let (inside, between) = (given(self.rank_link, inside), given(self.node_link, between));
        let links = (nodes > 1).then_some(Links { nodes, inside, between });
        let all = gpus.map_or(ranks, |(count, _)| count);
        anyhow::ensure!(all.is_multiple_of(nodes), "{all} ranks cannot be shared evenly by --nnodes {nodes}");
        match gpus {
            Some((count, _)) if layout.is_some() && count != ranks => {
                anyhow::bail!("--gpus is {count}, and --data-parallel-size times --tensor-parallel-size {ranks}")
            }
            _ => Ok(Ask { gpus, peak_flops, utilisation: self.utilisation, threads, layout, links }),
        }
    }
}

/// The plan of a run.
pub fn plan_run(options: &Options, choices: &Choices, ask: &Ask) -> anyhow::Result<Plan> {
    let prepared = Prepared::new(options, choices)?;
    Ok(Plan::new(of_run(&prepared, options, choices, ask)))
}

/// The plan for a base with LIMA's data, or for the shape of one.
pub fn plan_model(base: Option<&str>, name: Option<&str>, choices: &Choices, ask: &Ask) -> anyhow::Result<Plan> {
    let question = match (base, name) {
        (_, Some(name)) => {
            let config = shape(name).map_err(|error| anyhow::anyhow!("--shape {error}"))?;
            of_shape(name, &config, choices, ask)?
        }
        (Some(base), None) => of_shape(base, Base::open(base)?.checkpoint.config(), choices, ask)?,
        (None, None) => anyhow::bail!("--dry-run needs --base or --shape"),
    };
    if let Some(Layout { tensor, .. }) = question.layout {
        let divided = question.config.divided(tensor);
        divided.map_err(|error| anyhow::anyhow!("--tensor-parallel-size {tensor}: {error}"))?;
    }
    Ok(Plan::new(question))
}
