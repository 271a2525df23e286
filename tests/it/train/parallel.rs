//! Several ranks learn what one does, and none of them hangs when another is lost.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use lima::model::weights::{Checkpoint, expected_tensors};
use lima::ops::quant::DType;
use lima::parallel::{CommError, Communicator, Layout, Ranks};
use lima::train::model::Settings;
use lima::train::optimizer::{self, AdamW, Moments};
use lima::train::recipe::{Frozen, Number};
use lima::train::shards::Shards;
use lima::train::{Choices, Model, Options, Outcome, Prepared, TrainError, train_on};

use super::resume::{assert_same, has_temporary, wait};
use super::tiny::{Bench, losses, metrics, results};

const ONE: Layout = Layout::ONE;

fn data(data: usize) -> Layout {
    Layout { tensor: 1, data }
}

fn tensor(tensor: usize) -> Layout {
    Layout { tensor, data: 1 }
}

/// Ten steps with all that draws, some micro-batches a step, a last step with fewer rows, and rows held out.
fn recipe() -> Choices {
    Choices {
        epochs: Some(2),
        batch_size: Some(4),
        micro_batch_tokens: Some(60),
        lr: Some(1e-3),
        dropout: Some(0.3),
        neftune: Some(5.0),
        clip: Some(1.0),
        prompt_loss_weight: Some(0.1),
        val_split: Some(2),
        seed: Some(5),
        ..Choices::default()
    }
}

/// A run in the bench's folder, saved after every step.
fn prepared(bench: &Bench, out: &str, choices: &Choices, layout: Layout) -> (Prepared, Options) {
    let options = Options {
        base: bench.path("base").to_str().unwrap().to_owned(),
        data: bench.path("data.jsonl"),
        val_data: None,
        out: bench.path(out),
        save_every: Some(1),
        keep: None,
        threads: Some(1),
        layout,
        merge: true,
        save_format: None,
        samples: None,
        peak_flops: Some(1e10),
        progress: false,
    };
    (Prepared::new(&options, choices).unwrap(), options)
}

fn run_on(bench: &Bench, out: &str, choices: &Choices, ranks: Vec<Ranks>) -> Result<Outcome, TrainError> {
    let (prepared, options) = prepared(bench, out, choices, ranks[0].layout);
    train_on(&prepared, &options, &AtomicBool::new(false), ranks)
}

fn run(bench: &Bench, out: &str, choices: &Choices, layout: Layout) {
    assert_eq!(run_on(bench, out, choices, Ranks::local(layout, None)).unwrap(), Outcome::Done);
}

/// The largest difference of any weight of two saved models.
fn difference(one: &Path, other: &Path) -> f32 {
    let [one, other] = [one, other].map(|path| Checkpoint::open(path).unwrap());
    assert_eq!(one.config(), other.config());
    let of = |name: &str| {
        let [a, b] = [&one, &other].map(|model| model.tensor(name).unwrap().to_f32());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    expected_tensors(one.config()).iter().map(|(name, _)| of(name)).fold(0.0, f32::max)
}

fn near(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let most = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("{what}: {most:.1e}");
    assert!(most <= tolerance, "{what}: {most:.2e}, {a:?} for {b:?}");
}

fn validation(out: &Path) -> Vec<f64> {
    metrics(out, "validation").iter().map(|line| line["nll"].as_f64().unwrap()).collect()
}

/// That a layout's losses, norms, validation and saved weights are one rank's.
fn assert_learns_alike(bench: &Bench, layouts: &[Layout]) {
    run(bench, "one", &recipe(), ONE);
    let one = bench.path("one");
    assert_eq!(losses(&one).len(), 10);
    for layout in layouts {
        let name = format!("d{}t{}", layout.data, layout.tensor);
        run(bench, &name, &recipe(), *layout);
        let out = bench.path(&name);
        near(&losses(&out), &losses(&one), 1e-5, &format!("{name}, losses"));
        near(&validation(&out), &validation(&one), 1e-5, &format!("{name}, validation"));
        let norms = |out: &Path| {
            metrics(out, "step").iter().map(|line| line["grad_norm"].as_f64().unwrap()).collect::<Vec<_>>()
        };
        near(&norms(&out), &norms(&one), 1e-4, &format!("{name}, norms"));
        let weights = difference(&out.join("epoch-02"), &one.join("epoch-02"));
        println!("{name}, weights: {weights:.1e}");
        assert!(weights < 1e-4, "{name}: weights differ by {weights}");
        assert!(!has_temporary(&out));
    }
}

#[test]
fn ranks_learn_what_one_does() {
    let layouts = [data(2), data(4), tensor(2), tensor(4), Layout { tensor: 2, data: 2 }];
    assert_learns_alike(&Bench::of(DType::F32, 4), &layouts);
    // Grouped queries; a share that is not even.
    assert_learns_alike(&Bench::new(DType::F32), &[tensor(2), data(3)]);
}

/// Weights and means in BF16, and LoRA beside a quantised base, over data-parallel ranks.
#[test]
fn other_numbers_over_ranks() {
    let bench = Bench::new(DType::F32);
    let of = |choices: &Choices, name: &str, layout| {
        run(&bench, name, choices, layout);
        bench.path(name)
    };
    let bf16 = Choices { weights: Some(Number::Bf16), moments: Some(Number::Bf16), ..recipe() };
    let one = of(&bf16, "bf16-1", ONE);
    let [two, again] = ["bf16-2", "bf16-3"].map(|name| of(&bf16, name, data(2)));
    // Rounding may fall otherwise where gradients differ in their last bits.
    near(&losses(&two), &losses(&one), 1e-2, "BF16");
    assert_same(&results(&two), &results(&again));
    let cut = of(&bf16, "bf16-t", tensor(2));
    near(&losses(&cut), &losses(&one), 3e-2, "BF16, matrices cut");
    let lora = Choices { lora_rank: Some(4), lora_base: Some(Frozen::Q8), ..recipe() };
    let [one, two] = [("lora-1", ONE), ("lora-2", data(2))].map(|(name, layout)| of(&lora, name, layout));
    near(&losses(&two), &losses(&one), 1e-5, "QLoRA");
    assert!(difference(&two.join("epoch-02"), &one.join("epoch-02")) < 1e-4);
}

/// A communicator whose rank panics after some calls.
struct Dying {
    inner: Arc<dyn Communicator>,
    left: AtomicUsize,
}

impl Dying {
    fn live(&self) -> &dyn Communicator {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        assert!(left > 1, "the test kills this rank");
        &*self.inner
    }
}

impl Communicator for Dying {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> usize {
        self.inner.world_size()
    }
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.live().all_reduce(values)
    }
    fn all_gather(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.live().all_gather(values)
    }
    fn reduce_scatter(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.live().reduce_scatter(values)
    }
    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), CommError> {
        self.live().broadcast(root, values)
    }
    fn barrier(&self) -> Result<(), CommError> {
        self.live().barrier()
    }
    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}

/// Ranks of which the last panics after so many calls in its data group.
fn dying(layout: Layout, calls: usize) -> Vec<Ranks> {
    let mut ranks = Ranks::local(layout, None);
    let last = ranks.last_mut().unwrap();
    last.data = Arc::new(Dying { inner: Arc::clone(&last.data), left: AtomicUsize::new(calls) });
    ranks
}

/// A rank is killed: in the first step, while the state is gathered, in later steps. The others end with an error that
/// names it, and what was saved goes on bit by bit.
#[test]
fn a_killed_rank_ends_the_run_and_it_resumes() {
    let bench = Bench::new(DType::F32);
    let choices = Choices { moments: Some(Number::Bf16), ..recipe() };
    let two = data(2);
    run(&bench, "undisturbed", &choices, two);
    let expected = results(&bench.path("undisturbed"));
    let mut saved = Vec::new();
    for calls in [5, 45, 150] {
        let error = run_on(&bench, "out", &choices, dying(two, calls)).unwrap_err().to_string();
        assert!(
            error.contains("rank 1 panicked; ") || error.contains("cannot be written: rank 1 panicked; "),
            "{error}"
        );
        assert!(!has_temporary(&bench.path("out")));
        saved.push(losses(&bench.path("out")).len());
    }
    assert_eq!(saved[0], 0);
    assert!(saved[2] > 1, "{saved:?}");
    run(&bench, "out", &choices, two);
    assert_same(&results(&bench.path("out")), &expected);
    assert_eq!(losses(&bench.path("out")), losses(&bench.path("undisturbed")));
}

/// A state is the same file whoever wrote it: four ranks are killed, two of another kind go on, and one ends.
#[test]
fn a_run_goes_on_over_other_ranks() {
    let bench = Bench::new(DType::F32);
    run(&bench, "one", &recipe(), ONE);
    let out = bench.path("out");
    let both = Layout { tensor: 2, data: 2 };
    let mut done = 0;
    for (layout, calls) in [(both, 150), (data(2), 200)] {
        let error = run_on(&bench, "out", &recipe(), dying(layout, calls)).unwrap_err().to_string();
        let last = layout.ranks() - 1;
        assert!(error.contains(&format!("rank {last} panicked; ")) && error.contains("last state"), "{error}");
        assert!(losses(&out).len() > done, "{error}");
        done = losses(&out).len();
    }
    run(&bench, "out", &recipe(), tensor(2));
    near(&losses(&out), &losses(&bench.path("one")), 1e-5, "over other ranks");
    let weights = difference(&out.join("epoch-02"), &bench.path("one/epoch-02"));
    assert!(weights < 1e-4, "weights differ by {weights}");
}

/// SIGINT stops all ranks after the same step.
#[test]
fn a_signal_stops_all_ranks() {
    let bench = Bench::new(DType::F32);
    let recipe = ["--epochs", "30", "--batch-size", "2", "--lr", "1e-3"];
    let over = |ranks: &[&'static str]| [&recipe[..], ranks].concat();
    let ranks = over(&["--data-parallel-size", "2", "--tensor-parallel-size", "2"]);
    let out = bench.path("out");
    let mut child = bench.command("out", &ranks).spawn().unwrap();
    assert!(wait(&mut child, || losses(&out).len() > 3), "the run ended before the signal");
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{said}");
    let done = losses(&out).len();
    assert!(said.contains(&format!("stopped after step {done} of 300; the same command goes on")), "{said}");
    assert!(out.join(format!("state/step-{done:08}.safetensors")).exists());
}

fn numbers(moments: &[Moments]) -> usize {
    let of = |moments: &Moments| match moments {
        Moments::F32(mean, square) => (mean.len(), square.len()),
        Moments::Bf16(mean, square) => (mean.len(), square.len()),
    };
    moments.iter().map(of).map(|(mean, square)| mean + square).sum()
}

/// What ranks hold: matrices are divided by the tensor-parallel ranks, AdamW's means by all.
#[test]
fn weights_and_states_are_sharded() {
    let bench = Bench::of(DType::F32, 4);
    let (prepared, _) = prepared(&bench, "out", &recipe(), ONE);
    let held = |ranks: Ranks| {
        let new = prepared.renderer.new_token();
        let settings = Settings { threads: Some(1), ..Settings::default() };
        let tensor = Arc::clone(&ranks.tensor);
        let model = Model::shard(&prepared.base.checkpoint, new, settings, tensor).unwrap();
        let shards = Shards::new(ranks, model.parameters());
        let settings = optimizer::Settings::from(&prepared.recipe);
        let optimizer = AdamW::shard(model.parameters(), settings, shards.owner());
        let norms = model.parameters().iter().filter(|p| !p.decay).map(|p| p.var.elem_count()).sum::<usize>();
        let weights = model.parameters().iter().map(|p| p.var.elem_count()).sum::<usize>();
        (weights - norms, norms, numbers(optimizer.moments()), shards.trained() as usize)
    };
    let of = |layout: Layout| {
        thread::scope(|scope| {
            let held = &held;
            let all = Ranks::local(layout, None).into_iter().map(|ranks| scope.spawn(move || held(ranks)));
            let all: Vec<_> = all.collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let (matrices, norms, moments, all) = of(ONE)[0];
    assert_eq!((moments, all), (2 * (matrices + norms), matrices + norms));
    for layout in [data(2), data(4), tensor(2), tensor(4), Layout { tensor: 2, data: 2 }] {
        let (t, d) = (layout.tensor, layout.data);
        let expected = (matrices / t, norms, 2 * (matrices / t + norms) / d, all);
        assert!(of(layout).iter().all(|held| *held == expected), "{layout:?}: {:?} for {expected:?}", of(layout));
    }
}

/// The plan is that of the ranks that are asked for.
#[test]
fn a_plan_of_ranks() {
    let bench = Bench::of(DType::F32, 4);
    let plan = |more: &[&str]| {
        let more = [&["--dry-run"][..], more].concat();
        let output = bench.command("out", &more).stdout(Stdio::piped()).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (said, _) = plan(&["--data-parallel-size", "2", "--tensor-parallel-size", "4"]);
    assert!(said.contains("TP 4 × ZeRO-1 2") && said.contains("8 ranks, which are threads"), "{said}");
    let (said, error) = plan(&["--data-parallel-size", "2", "--gpus", "4"]);
    let expected = "train: --gpus is 4, and --data-parallel-size times --tensor-parallel-size 2\n";
    assert_eq!((said.as_str(), error.as_str()), ("", expected));
    assert!(!bench.path("out").exists());
}
