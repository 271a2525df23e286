//! What the binary says to things that cannot be: one line, a status, and nothing written.

use std::fs;
use std::process::{Command, Stdio};

use lima::ops::quant::DType;

use super::tiny::Bench;

/// Runs it with `arguments` in the folder.
fn refused(bench: &Bench, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.current_dir(bench.path("")).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn wrong_runs_are_refused_before_anything_is_written() {
    let bench = Bench::new(DType::F32);
    let write = |name: &str, text: &str| fs::write(bench.path(name), text).unwrap();
    write("empty.jsonl", "");
    write("broken.jsonl", "{\"conversations\":[\"a\",\"b\"]}\n{\"conversations\":[\"a\"");
    write("other.jsonl", "{\"text\":\"a\"}");
    write("long.jsonl", &format!("{{\"conversations\":[\"{}\",\"b\"]}}", "x y ".repeat(40)));
    write("prompts.txt", "\n\n");
    write("notes.txt", "not a model");
    // Bases: without weights, without tokenizer, damaged, of another architecture, with a small vocabulary.
    let copy = |name: &str| {
        fs::create_dir(bench.path(name)).unwrap();
        for entry in fs::read_dir(bench.path("base")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, bench.path(name).join(path.file_name().unwrap())).unwrap();
        }
        bench.path(name)
    };
    fs::remove_file(copy("no-weights").join("model.safetensors")).unwrap();
    fs::remove_file(copy("no-tokenizer").join("tokenizer.json")).unwrap();
    let whole = fs::read(bench.path("base/model.safetensors")).unwrap();
    fs::write(copy("cut").join("model.safetensors"), &whole[..whole.len() - 100]).unwrap();
    let edit = |name: &str, from: &str, to: &str| {
        let path = copy(name).join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    edit("mistral", "\"LlamaForCausalLM\"", "\"MistralForCausalLM\"");
    edit("three-layers", "\"num_hidden_layers\":2", "\"num_hidden_layers\":3");
    let plain = copy("no-template");
    fs::remove_file(plain.join("chat_template.jinja")).unwrap();
    let nan = copy("nan").join("model.safetensors");
    let mut bytes = whole.clone();
    let at = bytes.len() - 40;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(nan, bytes).unwrap();

    let before = super::tiny::files(&bench.path(""));
    let mut wrong = Vec::new();
    for (more, expected) in [
        ("--data no.jsonl", "no.jsonl: cannot be read: No such file"),
        ("--data base", "base: cannot be read: "),
        ("--data empty.jsonl", "empty.jsonl: has no rows"),
        ("--data broken.jsonl", "broken.jsonl:2: is not JSON at column "),
        ("--data other.jsonl", "other.jsonl:1: the row has none of \"conversations\""),
        ("--data long.jsonl --max-tokens 20", "long.jsonl: there is nothing to learn: no row has a supervised token"),
        ("--val-data empty.jsonl", "empty.jsonl: has no rows"),
        ("--val-data data.jsonl --val-split 3", "--val-data and --val-split exclude each other"),
        ("--dev-prompts prompts.txt", "prompts.txt: there are no prompts in it"),
        ("--dev-prompts no.txt", "no.txt: No such file"),
        ("--base nowhere/model", "nowhere/model does not exist"),
        ("--base notes.txt", "notes.txt: is not a model"),
        ("--base base/model.safetensors", "base/model.safetensors: is only the weights"),
        ("--base no-weights", "no-weights"),
        ("--base no-tokenizer", "no-tokenizer"),
        ("--base cut", "cut/model.safetensors: "),
        ("--base mistral", "architectures"),
        ("--base three-layers", "three-layers/model.safetensors: "),
        ("--base no-template --template base", "the base has no chat template: use --template lima"),
        ("--max-tokens 3000", "--max-tokens is 3000, and the base was made for 2048 positions"),
        ("--dropout 1", "--dropout is 1, must be from 0 to below 1"),
        ("--epochs 0", "--epochs is 0, must be at least 1"),
        ("--lr nan", "--lr is NaN, must be above 0"),
        ("--batch-size -1", "unexpected argument '-1' found"),
        ("--epochs many", "invalid value 'many' for '--epochs <N>'"),
        ("--lora-alpha 3", "the following required arguments were not provided: --lora-rank <RANK>"),
        ("--lora-rank 0", "--lora-rank is 0, must be at least 1"),
        ("--lora-rank 4 --merge off", "--merge off needs --template base"),
        ("--lora-rank 4 --merge off --template base", "--merge off needs --no-samples"),
        ("--lora-rank 4 --weights bf16", "--weights is bf16, must be f32 with --lora-rank"),
        ("--tensor-parallel-size 4", "--tensor-parallel-size 4: num_key_value_heads 2 cannot be divided over 4 ranks"),
        ("--tensor-parallel-size 3", "--tensor-parallel-size 3: num_attention_heads 4 cannot be divided over 3 ranks"),
        (
            "--tensor-parallel-size 2 --lora-rank 4",
            "--tensor-parallel-size does not go with --lora-rank, whose matrices are not cut; --data-parallel-size does",
        ),
        (
            "--batch-size 4 --data-parallel-size 8",
            "--data-parallel-size is 8, more than the 4 examples of --batch-size",
        ),
        ("--data-parallel-size 0", "invalid value '0' for '--data-parallel-size <N>'"),
        ("--threads 0", "invalid value '0' for '--threads <N>'"),
        ("--template chatml", "invalid value 'chatml' for '--template <TEMPLATE>'"),
        ("--no-such-flag", "unexpected argument '--no-such-flag' found"),
        ("--out notes.txt", "notes.txt cannot be written: "),
        ("--out notes.txt/out", "notes.txt/out cannot be written: Not a directory"),
        ("--out /proc/out", "/proc/out cannot be written: "),
        ("--out /dev/null", "/dev/null cannot be written: "),
    ] {
        let mut arguments: Vec<&str> = Vec::new();
        for pair in [["--base", "base"], ["--data", "data.jsonl"], ["--out", "out"]] {
            if !more.starts_with(pair[0]) {
                arguments.extend(pair);
            }
        }
        arguments.extend(["--threads", "1"].iter().filter(|_| !more.starts_with("--threads")));
        arguments.extend(more.split(' '));
        let (status, said) = refused(&bench, &arguments);
        let lines = said.lines().count();
        let usage = more.starts_with("--no-such")
            || expected.starts_with("invalid")
            || expected.starts_with("the following")
            || expected.starts_with("unexpected");
        let expected_status = if usage { 2 } else { 1 };
        // One line, and no reason twice.
        let is_clear = said.starts_with("train: ") && said.contains(expected) && lines == 1;
        if !is_clear || said.matches("os error").count() > 1 || status != Some(expected_status) {
            wrong.push(format!("{more}: {status:?} {said:?}"));
        }
    }
    for missing in ["base", "data", "out"] {
        let all = [["--base", "base"], ["--data", "data.jsonl"], ["--out", "out"]];
        let given: Vec<&str> = all.iter().filter(|pair| pair[0] != format!("--{missing}")).flatten().copied().collect();
        let expected = format!("train: --{missing} is needed; --help shows all flags\n");
        if refused(&bench, &given) != (Some(1), expected.clone()) {
            wrong.push(expected);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(super::tiny::files(&bench.path("")) == before, "something was written");

    // All weights are looked at once there is a place to train into, which is left without results.
    let (status, said) = refused(&bench, &["--base", "nan", "--data", "data.jsonl", "--out", "out", "--no-samples"]);
    assert_eq!(status, Some(1));
    let expected = "train: nan/model.safetensors: tensor \"lm_head.weight\" has numbers that are not finite in row ";
    assert!(said.lines().count() == 1 && said.starts_with(expected), "{said}");
    assert!(super::tiny::results(&bench.path("out")).is_empty());
}

#[test]
fn two_runs_do_not_write_over_each_other() {
    let bench = Bench::new(DType::F32);
    let out = lima::train::output::Output::open(&bench.path("out")).unwrap();
    let output = bench.train("out", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "train: out: another process is training into it\n");
    drop(out);
}
