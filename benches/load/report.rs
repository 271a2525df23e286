//! All that is known at the end, as it is written to JSON.

use std::time::Duration;

use serde::Serialize;

use super::cli::{Cli, Load};
use super::compare::{Ratio, ratios};
use super::metrics::{Record, Slo, Summary};
use super::overhead::Overhead;

/// A server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerInfo {
    pub name: String,
    pub url: String,
    pub model: String,
    /// How it was started, if we did.
    pub command: Option<String>,
}

/// A server under a load, all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Index into the report's servers.
    pub server: usize,
    pub load: String,
    /// Users, or conversations a second.
    pub value: f64,
    pub summary: Summary,
    /// Share of one core that the tool used.
    pub tool_cpu: Option<f64>,
    pub rounds: Vec<Vec<Record>>,
    #[serde(skip)]
    spent: Option<Duration>,
    #[serde(skip)]
    took: Duration,
}

impl Point {
    pub fn new(server: usize, load: Load) -> Self {
        let value = match load {
            Load::Closed(users) => f64::from(users),
            Load::Open(rate) => rate,
        };
        Self {
            server,
            load: load.to_string(),
            value,
            summary: Summary::of(&[], None),
            tool_cpu: None,
            rounds: Vec::new(),
            spent: Some(Duration::ZERO),
            took: Duration::ZERO,
        }
    }

    /// Adds a round, and the CPU time that the tool spent on it.
    pub fn push(&mut self, records: Vec<Record>, spent: Option<Duration>, took: Duration) {
        self.rounds.push(records);
        self.spent = self.spent.zip(spent).map(|(a, b)| a + b);
        self.took += took;
    }

    fn slices(&self) -> Vec<&[Record]> {
        self.rounds.iter().map(Vec::as_slice).collect()
    }
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub version: &'static str,
    /// With which it was made.
    pub command: String,
    pub machine: String,
    pub servers: Vec<ServerInfo>,
    /// What was asked, in words.
    pub workload: String,
    /// Whether the loop was open.
    pub open: bool,
    pub rounds: u32,
    pub seed: u64,
    pub slo: Option<Slo>,
    pub overhead: Option<Overhead>,
    /// Of the synthetic words, if there were any.
    pub tokens_per_word: Option<f64>,
    /// By load, then server.
    pub points: Vec<Point>,
    pub ratios: Vec<Ratio>,
}

/// CPU and cores.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown CPU", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{model}, {cores} cores")
}

/// This process's arguments, as a shell would take them; a bearer token is left out.
fn command() -> String {
    let mut words = vec!["cargo bench --bench load --".to_owned()];
    let mut secret = false;
    for argument in std::env::args().skip(1).filter(|a| a != "--bench") {
        let hidden = std::mem::take(&mut secret) || argument.starts_with("--api-key=");
        secret = argument == "--api-key";
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+".contains(c);
        words.push(match argument {
            _ if hidden => "…".into(),
            a if !a.is_empty() && a.chars().all(plain) => a,
            a => format!("'{}'", a.replace('\'', r"'\''")),
        });
    }
    words.join(" ")
}

/// What was asked, in words.
fn workload(cli: &Cli) -> String {
    let mut parts = Vec::new();
    match &cli.prompts {
        Some(path) => {
            let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            parts.push(format!("prompts of {name}"));
        }
        None => parts.push(format!("prompts of {} tokens", cli.input)),
    }
    let limit = if cli.natural { "at most " } else { "" };
    parts.push(format!("answers of {limit}{} tokens", cli.output));
    if cli.turns > 1 {
        let later = cli.turn_input.map(|l| format!(", later ones of {l} tokens")).unwrap_or_default();
        parts.push(format!("{} turns{later}", cli.turns));
    }
    if cli.shared_prefix > 0 {
        parts.push(format!("{} shared prefix(es) of {} tokens", cli.prefix_groups, cli.shared_prefix));
    }
    if cli.disconnect > 0.0 {
        parts.push(format!("{:.0} % of requests abandoned", cli.disconnect * 100.0));
    }
    if !cli.rate.is_empty() {
        parts.push(match cli.burstiness {
            1.0 => "open loop, Poisson".into(),
            b => format!("open loop, gamma (shape {b})"),
        });
    } else {
        parts.push("closed loop".into());
    }
    parts.join("; ")
}

impl Report {
    pub fn new(
        cli: &Cli,
        servers: Vec<ServerInfo>,
        overhead: Option<Overhead>,
        tokens_per_word: Option<f64>,
        mut points: Vec<Point>,
    ) -> Self {
        for point in &mut points {
            point.summary = Summary::of(&point.slices(), cli.slo);
            point.tool_cpu = point.spent.map(|s| s.as_secs_f64() / point.took.as_secs_f64().max(1e-9));
        }
        let pairs = points.chunks(2).filter(|_| servers.len() == 2);
        let all = pairs.flat_map(|p| ratios(&p[0].load, &p[0].slices(), &p[1].slices(), cli.slo));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            command: command(),
            machine: machine(),
            workload: workload(cli),
            open: !cli.rate.is_empty(),
            rounds: cli.rounds,
            seed: cli.seed,
            slo: cli.slo,
            overhead,
            tokens_per_word,
            ratios: all.collect(),
            servers,
            points,
        }
    }

    /// Loads in order, without repetition.
    pub fn loads(&self) -> Vec<&str> {
        self.points.iter().filter(|p| p.server == 0).map(|p| p.load.as_str()).collect()
    }

    /// A server's points in the order of loads.
    pub fn of_server(&self, server: usize) -> Vec<&Point> {
        self.points.iter().filter(|p| p.server == server).collect()
    }
}
