//! Tokens and log-probabilities against one rank's: batched, in chunks, from the prefix cache, after preemption.

use lima::engine::{Request, TokenId};
use lima::model::weights::Checkpoint;
use lima::model::weights::TensorView;
use lima::ops::cpu::pack::Packed;
use lima::ops::cpu::pool::Pool;
use lima::ops::quant::DType;

use super::{LEN, TIE, compare, greedy, logprobs, model, prompts, reference, scored, setting, start};
use crate::support::engine::{Output, Setting};
use crate::support::goldens;

/// Teacher-forced: the token after each beginning of what one rank has generated, each asked as a request of its own, all at
/// once, and all in one pass as a prompt that is scored. Returns the largest difference of a log-probability.
fn forced(checkpoint: &Checkpoint, ranks: usize, prompts: &[Vec<TokenId>], expected: &[Output], every: usize) -> f32 {
    let engine = start(checkpoint, setting(DType::F32, 64), ranks);
    let mut worst = 0f32;
    for (prompt, output) in prompts.iter().zip(expected) {
        let beginning = |k: usize| [prompt, &output.tokens[..k]].concat();
        let asked: Vec<usize> = (0..LEN).step_by(every).collect();
        let requests: Vec<Request> = asked.iter().map(|&k| greedy(&beginning(k), 1)).collect();
        let answers = engine.ask(&requests);
        for (&k, (answer, _)) in asked.iter().zip(&answers) {
            let what = format!("{ranks} ranks, token {k}");
            worst = worst.max(compare(&answer.top[0], &output.top[k], TIE, &what));
        }
        assert!(answers.iter().any(|(_, cached)| *cached >= 32), "nothing was cached");
        let (whole, _) = engine.ask(&[scored(&beginning(LEN))]).remove(0);
        let scores = &whole.scores[prompt.len() - 1..];
        assert_eq!(scores.len(), LEN);
        for (k, (token, bits, _, top)) in scores.iter().enumerate() {
            assert_eq!(*token, output.tokens[k]);
            worst = worst.max((f32::from_bits(*bits) - f32::from_bits(output.logprobs[k])).abs());
            worst = worst.max(compare(top, &output.top[k], TIE, &format!("{ranks} ranks, scored token {k}")));
        }
    }
    worst
}

/// Free: as one rank's up to the first tie.
fn free(ranks: usize, ours: &Output, one: &Output) -> usize {
    for k in 0..LEN {
        if ours.tokens[k] != one.tokens[k] {
            let top = logprobs(&one.top[k]);
            assert!(top[0].1 - top[1].1 <= TIE, "{ranks} ranks, token {k}: {:?} instead of {top:?}", ours.top[k]);
            return k;
        }
    }
    LEN
}

fn ranks_equal_one(checkpoint: &Checkpoint, ranks: &[usize], count: usize, every: usize) {
    let prompts = prompts(count, checkpoint.config().vocab_size);
    let expected = reference(checkpoint, DType::F32, &prompts);
    let requests: Vec<Request> = prompts.iter().map(|prompt| greedy(prompt, LEN)).collect();
    for &ranks in ranks {
        let worst = forced(checkpoint, ranks, &prompts, &expected, every);
        println!("{ranks} ranks: log-probabilities differ by {worst:.1e} at most");
        assert!(worst < 1e-3, "{ranks} ranks: {worst}");
        // All of them at once, with room for all, then for fewer: the same bits.
        let ample = start(checkpoint, setting(DType::F32, 64), ranks);
        let outputs: Vec<Output> = ample.ask(&requests).into_iter().map(|(output, _)| output).collect();
        let equal: Vec<usize> = outputs.iter().zip(&expected).map(|(ours, one)| free(ranks, ours, one)).collect();
        println!("{ranks} ranks: {equal:?} tokens equal one rank's");
        assert_eq!(ample.preemptions(), 0);
        drop(ample);
        let tight = Setting { max_num_batched_tokens: 16, num_blocks: 6, ..setting(DType::F32, 6) };
        let tight = start(checkpoint, tight, ranks);
        for (i, (output, _)) in tight.ask(&requests).into_iter().enumerate() {
            assert!(output == outputs[i], "{ranks} ranks: request {i} depends on its neighbours");
        }
        assert!(tight.preemptions() > 0, "nothing was preempted");
    }
}

/// As many heads of keys and values as ranks or more, or fewer, so that ranks have the same ones; and shares that differ.
#[test]
fn random_models() {
    let dir = tempfile::tempdir().unwrap();
    for (heads, kv_heads, mlp, ranks) in
        [(8, 4, 128, &[2, 4][..]), (8, 2, 96, &[2, 4]), (4, 1, 160, &[2, 4]), (9, 3, 96, &[2, 4, 5])]
    {
        let checkpoint = Checkpoint::open(model(dir.path(), heads, kv_heads, mlp)).unwrap();
        println!("{heads} heads, {kv_heads} of keys and values, {mlp} columns");
        ranks_equal_one(&checkpoint, ranks, 3, 1);
    }
}

/// Nine heads and three of keys and values: three ranks.
#[test]
fn the_default_model() {
    let checkpoint = Checkpoint::open(goldens::default_model()).unwrap();
    ranks_equal_one(&checkpoint, &[3], 2, 8);
}

/// Quantised weights are cut between blocks, never made again.
#[test]
fn quantised_columns_are_cut_as_they_are() {
    let (rows, cols) = (3, 768);
    for dtype in DType::ALL {
        let bytes = crate::formats::random_bytes(dtype, 7, rows * cols);
        let whole = TensorView::new(dtype, rows, cols, &bytes, None).unwrap();
        let numbers = whole.to_f32();
        let part = whole.part(0..rows, 256..768).unwrap();
        let packed = Packed::new(&mut Pool::new(1), &[part], dtype).unwrap();
        for row in 0..rows {
            let mut out = vec![0f32; 512];
            packed.unpack_row(row, &mut out);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&out), bits(&numbers[row * cols + 256..][..512]), "{dtype}");
        }
        assert_eq!(whole.part(0..rows, 32..64).is_some(), dtype.block_len() <= 32, "{dtype}");
    }
}
