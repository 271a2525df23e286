//! Ranks that are processes on the loopback interface: as torchrun starts them.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use lima::ops::quant::DType;

use super::resume::{assert_same, has_temporary, wait};
use super::tiny::{Bench, losses, metrics, results};

/// Ten steps with all that draws, and rows held out, saved after every step.
const RECIPE: [&str; 20] = [
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--micro-batch-tokens",
    "60",
    "--lr",
    "1e-3",
    "--dropout",
    "0.3",
    "--neftune",
    "5",
    "--clip",
    "1",
    "--val-split",
    "2",
    "--seed",
    "5",
    "--save-every",
    "1",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    RECIPE.into_iter().chain(more.iter().copied()).collect()
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// Process `rank` of a group, with torchrun's environment; `others` are variables beside it.
fn process(bench: &Bench, out: &str, more: &[&str], place: (usize, usize), port: &str) -> Command {
    let (rank, size) = place;
    let mut command = bench.command(out, more);
    for (name, value) in [
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("GROUP_RANK", "0".into()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.into()),
        ("TORCHELASTIC_RUN_ID", "none".into()),
        ("TORCHELASTIC_RESTART_COUNT", "0".into()),
    ] {
        command.env(name, value);
    }
    command
}

fn start(bench: &Bench, out: &str, more: &[&str], size: usize) -> Vec<Child> {
    let port = free_port();
    (0..size).map(|rank| process(bench, out, more, (rank, size), &port).spawn().unwrap()).collect()
}

fn ended(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn train(bench: &Bench, out: &str, more: &[&str], size: usize) {
    for (rank, output) in ended(start(bench, out, more, size)).iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}", said(output));
    }
}

/// Two and four processes learn what one does, and do what as many threads do, bit by bit.
#[test]
fn processes_learn_what_one_does() {
    let bench = Bench::of(DType::F32, 4);
    let one = losses(&bench.trained("one", &RECIPE));
    assert_eq!(one.len(), 10);
    for (size, layout) in [
        (2, &["--data-parallel-size", "2"][..]),
        (4, &["--data-parallel-size", "4"]),
        (4, &["--data-parallel-size", "2", "--tensor-parallel-size", "2"]),
        // Two threads in each of two processes.
        (2, &["--data-parallel-size", "4"]),
    ] {
        let (threads, processes) =
            (format!("threads{size}-{}", layout.len()), format!("processes{size}-{}", layout.len()));
        let threads = bench.trained(&(threads + layout[1]), &with(layout));
        let name = processes + layout[1];
        train(&bench, &name, &with(layout), size);
        let out = bench.path(&name);
        assert_same(&results(&out), &results(&threads));
        assert_eq!(losses(&out), losses(&threads));
        let nll = |out| metrics(out, "validation").iter().map(|v| v["nll"].clone()).collect::<Vec<_>>();
        assert_eq!(nll(&out), nll(&threads));
        let most = losses(&out).iter().zip(&one).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{size} processes, {layout:?}: losses differ from one's by {most:.1e}");
        assert!(most < 1e-5, "{most}");
        assert!(!has_temporary(&out));
    }
    // What no flag says: each process is a rank of data parallelism.
    train(&bench, "default", &RECIPE, 2);
    assert_eq!(losses(&bench.path("default")), losses(&bench.path("processes2-22")));
}

/// A process is killed, the first or another: the others end with a message and a failure, and the run goes on from the
/// last state as if nothing had been, over as many processes or fewer.
#[test]
fn a_killed_process_ends_the_job_and_it_resumes() {
    let bench = Bench::new(DType::F32);
    let long = ["--epochs", "12", "--batch-size", "2", "--lr", "1e-3", "--save-every", "1"];
    let over: Vec<&str> = long.into_iter().chain(["--data-parallel-size", "2"]).collect();
    let undisturbed = bench.trained("undisturbed", &over);
    let out = bench.path("out");
    for killed in [1, 0] {
        let before = losses(&out).len();
        let mut children = start(&bench, "out", &long, 2);
        let is_under_way = wait(&mut children[0], || losses(&out).len() > before + 3);
        assert!(is_under_way, "the run ended before the kill");
        children[killed].kill().unwrap();
        let outputs = ended(children);
        let other = &outputs[1 - killed];
        assert_eq!(other.status.code(), Some(1), "{}", said(other));
        // Perhaps while the state was gathered, which then cannot be written.
        assert!(said(other).contains(&format!("rank {killed} is lost: ")), "{}", said(other));
        if killed == 1 {
            assert!(said(other).contains("the last state is that of step "), "{}", said(other));
        }
    }
    train(&bench, "out", &long, 2);
    assert_same(&results(&out), &results(&undisturbed));
    assert_eq!(losses(&out), losses(&undisturbed));
}

/// A signal to any one of them stops all after the same step.
#[test]
fn a_signal_to_one_stops_all() {
    let bench = Bench::new(DType::F32);
    let out = bench.path("out");
    let long = ["--epochs", "30", "--batch-size", "2", "--lr", "1e-3"];
    let mut children = start(&bench, "out", &long, 2);
    assert!(wait(&mut children[0], || losses(&out).len() > 3), "the run ended before the signal");
    let kill = format!("kill -TERM {}", children[1].id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let outputs = ended(children);
    assert!(outputs.iter().all(|o| o.status.code() == Some(130)), "{outputs:?}");
    let done = losses(&out).len();
    assert!(said(&outputs[0]).contains(&format!("stopped after step {done} of 300")), "{}", said(&outputs[0]));
    assert_eq!(said(&outputs[1]), "");
    assert!(out.join(format!("state/step-{done:08}.safetensors")).exists());
}

/// What is wrong in one process is said in all, and nothing waits for what does not come.
#[test]
fn processes_that_do_not_fit_end_all() {
    let bench = Bench::new(DType::F32);
    // The last of two equal flags would be an error of its own.
    let of = |flags: [&[&str]; 2]| {
        let port = free_port();
        let spawn = |rank: usize| process(&bench, "out", flags[rank], (rank, 2), &port).spawn().unwrap();
        let outputs = ended((0..2).map(spawn).collect());
        assert!(outputs.iter().all(|o| o.status.code() == Some(1)), "{outputs:?}");
        [said(&outputs[0]), said(&outputs[1])]
    };
    let [first, second] = of([&["--lr", "1e-3"], &["--lr", "2e-3"]]);
    let reason = "this process's run is not that of rank 0: lr is 0.002, and was 0.001";
    assert_eq!(second, format!("train: {reason}\n"));
    assert_eq!(first, format!("train: rank 1 failed: {reason}\n"));
    let [first, second] = of([&[], &["--max-tokens", "4096"]]);
    let reason = "--max-tokens is 4096, and the base was made for 2048 positions";
    assert_eq!(second, format!("train: {reason}\n"));
    assert_eq!(first, format!("train: rank 1 failed: {reason}\n"));
    let [first, second] = of([&["--data-parallel-size", "3"]; 2]);
    for said in [first, second] {
        assert_eq!(said, "train: 3 ranks cannot be shared evenly by 2 processes\n");
    }
    // Nobody comes.
    let mut alone = process(&bench, "out", &["--join-timeout", "1"], (1, 2), &free_port());
    let error = said(&alone.output().unwrap());
    assert!(
        error.starts_with("train: rank 0 was not reached at 127.0.0.1:") && error.contains(" within 1s: "),
        "{error}"
    );
    let mut half = bench.command("out", &[]);
    let output = half.env("RANK", "1").output().unwrap();
    assert_eq!(said(&output), "train: RANK is set without WORLD_SIZE (torchrun)\n");
    // Alone, whatever the environment says.
    let mut alone = process(&bench, "out", &["--nnodes", "1", "--epochs", "1"], (1, 2), "1");
    assert!(alone.stdout(Stdio::null()).output().unwrap().status.success());
}
