//! Models of every kind over ranks: quantised files, what `train` has written, adapters.

use lima::engine::{Request, SamplingParams};
use lima::model::weights::{Checkpoint, TensorView};
use lima::ops::quant::DType;
use lima::runner::{adapters, tensor};

use super::{LEN, compare, executor, greedy, load, places, prompts, reference, scored, setting, start};
use crate::support::engine::{Running, Setting};
use crate::support::goldens;
use crate::train::tiny::Bench;

/// Products of these formats round activations, and a last bit of a sum may round another way: over ranks the numbers are as
/// far from F32's as on one, and not nearer to each other than that.
#[test]
fn other_formats() {
    let checkpoint = Checkpoint::open(goldens::default_model()).unwrap();
    let stored = checkpoint.tensor("model.layers.0.mlp.down_proj.weight").map(|t: TensorView<'_>| t.dtype).unwrap();
    let prompt = &prompts(1, checkpoint.config().vocab_size)[0];
    let expected = reference(&checkpoint, DType::F32, std::slice::from_ref(prompt)).remove(0);
    let tokens = [&prompt[..], &expected.tokens].concat();
    // How far the log-probabilities of the same tokens are from F32's, on average.
    let distance = |engine: Running| {
        let (whole, _) = engine.ask(&[scored(&tokens)]).remove(0);
        let scores = whole.scores[prompt.len() - 1..].iter().zip(&expected.logprobs);
        let all = scores.map(|((_, ours, ..), exact)| (f32::from_bits(*ours) - f32::from_bits(*exact)).abs());
        all.sum::<f32>() / LEN as f32
    };
    for dtype in [stored, DType::BF16, DType::Q8_0] {
        let one = distance(Running::start(&checkpoint, setting(dtype, 64)));
        let three = distance(start(&checkpoint, setting(dtype, 64), 3));
        println!("{dtype}: {one:.1e} from F32 on one rank, {three:.1e} over three");
        assert!(three <= 1.5 * one + 1e-3, "{dtype}: {three} instead of {one}");
    }
}

/// What training saves, padded vocabulary and all.
#[test]
fn a_trained_checkpoint() {
    let bench = Bench::new(DType::F32);
    let out = bench.trained("out", &["--epochs", "1", "--batch-size", "4", "--lr", "1e-3"]);
    let checkpoint = Checkpoint::open(out.join("epoch-01")).unwrap();
    let prompts = prompts(2, checkpoint.config().vocab_size);
    let expected = reference(&checkpoint, DType::F32, &prompts);
    for ranks in [2, 4] {
        let engine = start(&checkpoint, setting(DType::F32, 64), ranks);
        for (prompt, output) in prompts.iter().zip(&expected) {
            let (whole, _) = engine.ask(&[scored(&[&prompt[..], &output.tokens].concat())]).remove(0);
            for (k, (.., top)) in whole.scores[prompt.len() - 1..].iter().enumerate() {
                let worst = compare(top, &output.top[k], super::TIE, &format!("{ranks} ranks, token {k}"));
                assert!(worst < 1e-3, "{ranks} ranks, token {k}: {worst}");
            }
        }
    }
}

/// Adapters are cut with the matrices they change; rows with and without stand in one batch.
#[test]
fn adapters_are_cut_too() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let setting = Setting { num_blocks: 32, ..setting(DType::F32, 32) };
    let config = checkpoint.config();
    let prompt = &prompts(1, config.vocab_size)[0][..30];
    let ask = |engine: &Running, names: &[&str], weights: &dyn Fn(&str) -> _| {
        let params = SamplingParams { max_tokens: 12, logprobs: Some(2), ..SamplingParams::default() };
        let request = |adapter| Request { adapter, ..Request::generate(prompt, params.clone()) };
        let lease = |name: &&str| Some(engine.handle.load_adapter(weights(name)).unwrap());
        let adapters: Vec<_> = std::iter::once(None).chain(names.iter().map(lease)).collect();
        engine.ask(&adapters.into_iter().map(request).collect::<Vec<_>>())
    };
    let names = ["gqa-qv", "gqa-all", "gqa-patterns"];
    let folder = |name: &str| goldens::path("lora").join(name);

    let mut one = setting.load(&checkpoint);
    one.enable_adapters(3, 32);
    let one = ask(&Running::with(one, setting), &names, &|name| adapters::load(&folder(name), config, 32).unwrap());
    for ranks in [2, 4] {
        let mut several = load(&checkpoint, &setting, places(ranks));
        several.enable_adapters(3, 32);
        let slices = several.slices().to_vec();
        let engine = Running::of(several.start().0, setting);
        let parts = |name: &str| adapters::load_parts(&folder(name), config, &slices, 32).unwrap();
        let several = ask(&engine, &names, &parts);
        for (i, ((ours, _), (one, _))) in several.iter().zip(&one).enumerate() {
            for k in 0..ours.tokens.len().min(one.tokens.len()) {
                let worst = compare(&ours.top[k], &one.top[k], super::TIE, &format!("{ranks} ranks, {i}, token {k}"));
                assert!(worst < 1e-3, "{ranks} ranks, adapter {i}, token {k}: {worst}");
                if ours.tokens[k] != one.tokens[k] {
                    break;
                }
            }
        }
        // The adapters differ, or nothing was shown.
        assert!(several.iter().skip(1).all(|(output, _)| output.logprobs != several[0].0.logprobs));
        // What was made for one rank is refused.
        assert!(engine.handle.load_adapter(adapters::load(&folder("gqa-qv"), config, 32).unwrap()).is_err());
    }
}

/// Ranks for which there are no heads are refused by the numbers there are, before anything is read.
#[test]
fn too_many_ranks_are_refused() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let options = setting(DType::F32, 8).options(&checkpoint, std::slice::from_ref(checkpoint.config()));
    let error = tensor::load(&checkpoint, &options, 5, None, |_| panic!("nothing is read")).map(|_| ()).unwrap_err();
    let expected = "--tensor-parallel-size: 4 heads of 16 (2 of keys and values) and 96 columns of the MLP, in blocks of 1 \
                    and 1, cannot be cut over 5 ranks, but over 1 to 4";
    assert_eq!(error.to_string(), expected);
}

/// An executor alone, without an engine: nothing is left behind when it goes.
#[test]
fn ranks_end_with_their_executor() {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    let (executor, standing) = executor(&checkpoint, &setting(DType::F32, 8), 2);
    drop(executor);
    assert_eq!(standing.lost(), None);
    let engine = start(&checkpoint, setting(DType::F32, 8), 2);
    assert_eq!(engine.ask(&[greedy(&[5, 6, 7], 3)])[0].0.tokens.len(), 3);
}
