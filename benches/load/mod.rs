//! A load test of OpenAI-compatible servers. Pure parts first (`stats`, `arrivals`, `sse`, `lengths`, `words`,
//! `prompts`, `metrics`, `compare`), then the client and the loops, then the reports. `tests/it/load_tool.rs` includes
//! this module, since a bench without Cargo's harness runs no tests.

pub mod arrivals;
pub mod chart;
pub mod cli;
pub mod client;
pub mod compare;
pub mod html;
pub mod lengths;
pub mod markdown;
pub mod metrics;
pub mod overhead;
pub mod plots;
pub mod prompts;
pub mod report;
pub mod rng;
pub mod run;
pub mod servers;
pub mod sse;
pub mod stats;
pub mod words;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use cli::{Cli, Load};
use client::Target;
use metrics::{Record, Summary};
use prompts::{Prompts, Shape};
use report::{Point, Report, ServerInfo};
use run::{Amount, Live, Manner, Session};
use servers::Started;
use words::WordRate;

/// Conversations that do not count have numbers from here on.
const WARM_UP: u64 = 1 << 48;

/// Where a server comes from.
enum Origin<'a> {
    Url(&'a str),
    Lima(&'a str),
    Command(&'a str),
}

impl Origin<'_> {
    /// The server, its process if we started it, and what to call it.
    async fn open(&self, cli: &Cli, name: Option<String>) -> Result<(Target, Option<Started>, ServerInfo)> {
        let timeout = Duration::from_secs(cli.start_timeout);
        let (started, command, short) = match self {
            Self::Url(_) => (None, None, None),
            Self::Lima(flags) => {
                let command = format!("lima {flags}").trim_end().to_owned();
                (Some(Started::lima(flags, timeout).await?), Some(command), Some("lima".to_owned()))
            }
            Self::Command(line) => {
                let program = line.split_whitespace().next().unwrap_or(line);
                let short = program.rsplit('/').next().map(str::to_owned);
                (Some(Started::command(line, timeout).await?), Some((*line).to_owned()), short)
            }
        };
        let url = match (self, &started) {
            (Self::Url(url), _) => (*url).to_owned(),
            (_, Some(started)) => started.url.clone(),
            (_, None) => bail!("a server without an address"),
        };
        let target = Target::connect(name.or(short), &url, cli.model.clone(), cli.api_key.clone()).await?;
        let info = ServerInfo { name: target.name.clone(), url, model: target.model.clone(), command };
        Ok((target, started, info))
    }
}

/// The servers that the flags ask for, one or two.
fn origins(cli: &Cli) -> Vec<Origin<'_>> {
    let first = match (&cli.url, &cli.command) {
        (Some(url), _) => Origin::Url(url),
        (None, Some(line)) => Origin::Command(line),
        (None, None) => Origin::Lima(cli.lima.as_deref().unwrap_or("")),
    };
    let second = match (&cli.against, &cli.against_command, &cli.against_lima) {
        (Some(url), _, _) => Some(Origin::Url(url)),
        (None, Some(line), _) => Some(Origin::Command(line)),
        (None, None, flags) => flags.as_deref().map(Origin::Lima),
    };
    std::iter::once(first).chain(second).collect()
}

/// Tokens of a synthetic word, asked of the server.
async fn calibrate(session: &Session, seed: u64) -> Result<WordRate> {
    let mut counts = [0; 2];
    for (count, words) in counts.iter_mut().zip(words::PROBES) {
        let text = words::text(&mut rng::Rng::new(seed, WARM_UP + words as u64), words);
        *count = session.count_tokens(text).await.context("counting the tokens of synthetic words")?;
    }
    WordRate::from_probes(counts).with_context(|| {
        format!("{} counts {counts:?} tokens for {:?} words: use --no-calibrate", session.target.name, words::PROBES)
    })
}

/// Runs one load on one server under a progress bar, or with a line at its end where there is no terminal.
async fn show(
    session: &Session,
    cli: &Cli,
    load: Load,
    amount: Amount,
    first: u64,
    title: &str,
) -> Result<Vec<Record>> {
    let total = amount.conversations.map(|n| n * u64::from(cli.turns));
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let template = if total.is_some() {
        "{prefix} {wide_bar:.blue} {pos}/{len} requests, {elapsed} {msg}"
    } else {
        "{prefix} {spinner} {pos} requests, {elapsed} {msg}"
    };
    bar.set_style(ProgressStyle::with_template(template)?);
    bar.set_prefix(title.to_owned());
    let session = Session { live: Arc::new(Live::default()), ..session.clone() };
    let (live, shown) = (Arc::clone(&session.live), bar.clone());
    let painter = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let done = live.requests.load(Ordering::Relaxed);
            let tokens = live.output_tokens.load(Ordering::Relaxed) as f64 / shown.elapsed().as_secs_f64();
            shown.set_position(done as u64);
            let running = live.begun.load(Ordering::Relaxed).saturating_sub(done);
            let failed = live.failed.load(Ordering::Relaxed);
            shown.set_message(format!("{running} running, {tokens:.0} tok/s, {failed} failed"));
        }
    });
    let records = session.run(load, cli.burstiness, amount, first).await;
    painter.abort();
    bar.finish_and_clear();
    let records = records?;
    let brief = Summary::of(&[&records], cli.slo);
    eprintln!(
        "{title}: {} of {} requests ({} abandoned), {:.1} s, {:.1} output tok/s, TTFT p50 {}",
        brief.succeeded,
        brief.requests,
        brief.disconnected,
        brief.seconds,
        brief.output_tokens_per_second,
        brief.ttft.as_ref().map_or_else(|| "-".into(), |d| format!("{:.0} ms", d.p50)),
    );
    for (kind, count) in &brief.failed {
        eprintln!("  {count} failed: {kind}: {}", brief.examples.get(kind).map_or("", String::as_str));
    }
    Ok(records)
}

/// Runs everything.
pub async fn execute(cli: &Cli) -> Result<Report> {
    let file = cli.prompts.as_deref().map(prompts::read).transpose()?;
    let overhead = if cli.no_overhead { None } else { Some(overhead::measure().await?) };
    let (mut targets, mut processes, mut infos) = (Vec::new(), Vec::new(), Vec::new());
    for (i, origin) in origins(cli).iter().enumerate() {
        let (target, process, info) = origin.open(cli, cli.names.get(i).cloned()).await?;
        targets.push(target);
        processes.extend(process);
        infos.push(info);
    }
    if let [first, second] = infos.as_mut_slice()
        && first.name == second.name
    {
        first.name.push_str(" (1)");
        second.name.push_str(" (2)");
    }
    let shape = Shape {
        seed: cli.seed,
        input: cli.input,
        turn_input: cli.turn_input.unwrap_or(cli.input),
        output: cli.output,
        turns: usize::from(cli.turns),
        shared_prefix: cli.shared_prefix,
        prefix_groups: cli.prefix_groups,
        allow_repeats: cli.allow_repeats,
    };
    let synthetic = file.is_none() || cli.shared_prefix > 0;
    let manner = Arc::new(Manner::of(cli));
    let session = |target: &Target, prompts: &Arc<Prompts>| Session {
        target: target.clone(),
        prompts: Arc::clone(prompts),
        manner: Arc::clone(&manner),
        live: Arc::default(),
    };
    let uncalibrated = Arc::new(Prompts::new(shape.clone(), WordRate::ONE, None));
    // One server's count for both, as both are to be asked the same.
    let rate = if synthetic && !cli.no_calibrate {
        calibrate(&session(&targets[0], &uncalibrated), cli.seed).await?
    } else {
        WordRate::ONE
    };
    let prompts = Arc::new(Prompts::new(shape, rate, file));
    let sessions: Vec<Session> = targets.iter().map(|t| session(t, &prompts)).collect();

    let loads = cli.loads();
    let conversations = cli.requests.or(cli.duration.is_none().then_some(64));
    let amount = Amount { conversations, seconds: cli.duration };
    let mut points: Vec<Point> =
        loads.iter().flat_map(|&load| (0..sessions.len()).map(move |server| Point::new(server, load))).collect();
    let (mut next, mut next_warm_up) = (0, WARM_UP);
    for round in 0..cli.rounds {
        for (l, &load) in loads.iter().enumerate() {
            let mut used = 0;
            for turn in 0..sessions.len() {
                // Who goes first changes from round to round.
                let server = (turn + round as usize) % sessions.len();
                let session = &sessions[server];
                if cli.warmup > 0 {
                    let amount = Amount { conversations: Some(cli.warmup), seconds: None };
                    session.run(Load::Closed(4), 1.0, amount, next_warm_up).await?;
                }
                let mut title = format!("{}, {load}", infos[server].name);
                if cli.rounds > 1 {
                    title = format!("{title}, round {} of {}", round + 1, cli.rounds);
                }
                let cpu = overhead::thread_cpu();
                let began = std::time::Instant::now();
                let records = show(session, cli, load, amount, next, &title).await?;
                let spent = cpu.zip(overhead::thread_cpu()).map(|(a, b)| b.saturating_sub(a));
                let begun = records.iter().filter(|r| r.turn == 0).count() as u64;
                used = begun.max(used);
                points[l * sessions.len() + server].push(records, spent, began.elapsed());
            }
            next += used;
            next_warm_up += cli.warmup;
        }
    }
    drop(processes);
    let rate = synthetic.then(|| rate.tokens_per_word());
    Ok(Report::new(cli, infos, overhead, rate, points))
}

/// Runs until the end or a signal, whichever comes first; either way the servers we started end.
async fn guarded(cli: &Cli) -> Result<Report> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        report = execute(cli) => report,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

fn run_and_write(cli: &Cli) -> Result<bool> {
    // One thread: the tool takes as little as it can from servers on the same machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(guarded(cli))?;
    let write = |path: &std::path::Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &cli.json {
        write(path, serde_json::to_string(&report)?)?;
    }
    if let Some(path) = &cli.html {
        write(path, html::page(&report))?;
    }
    if let Some(path) = &cli.svg {
        write(path, plots::readme(&report))?;
    }
    println!("{}", markdown::text(&report));
    Ok(report.points.iter().all(|p| p.summary.succeeded > 0 || p.summary.disconnected > 0))
}

/// The program. Fails if it could not run, or if at some load no request succeeded.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run_and_write(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: at some load no request succeeded");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
