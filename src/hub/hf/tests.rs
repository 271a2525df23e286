use super::*;

fn settings(vars: &'static [(&str, &str)]) -> HfSettings {
    HfSettings::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())).unwrap()
}

#[test]
fn sources_parse() {
    let full = HfModel::parse("org/name-1.0_x@refs/pr/3:sub/m-Q8_0 (1).gguf").unwrap();
    assert_eq!((full.repo.as_str(), full.revision(), full.name()), ("org/name-1.0_x", "refs/pr/3", "name-1.0_x"));
    assert_eq!(full.file.as_deref(), Some("sub/m-Q8_0 (1).gguf"));
    assert_eq!(full.to_string(), "hf:org/name-1.0_x@refs/pr/3:sub/m-Q8_0 (1).gguf");
    assert_eq!(HfModel::parse("a/b").unwrap().revision(), "main");
}

#[test]
fn what_could_leave_the_cache_or_the_repository_is_refused() {
    for (text, what) in [
        ("", "org/name"),
        ("name", "org/name"),
        ("a/b/c", "org/name"),
        ("/etc/passwd", "org/name"),
        ("../b", "org/name"),
        ("a/..", "org/name"),
        ("a/b--c", "org/name"),
        ("a/b?x=1", "org/name"),
        ("a/b c", "org/name"),
        ("a/b\n", "org/name"),
        ("user:pw/b", "org/name"),
        ("a/b@", "revision"),
        ("a/b@../../x", "revision"),
        ("a/b@/x", "revision"),
        ("a/b@x//y", "revision"),
        ("a/b@x y", "revision"),
        ("a/b@x?y", "revision"),
        ("a/b@x\u{1}", "revision"),
        ("a/b:", "file is malformed"),
        ("a/b:../m.gguf", "file is malformed"),
        ("a/b:/m.gguf", "file is malformed"),
        ("a/b:x/./m.gguf", "file is malformed"),
        ("a/b:x\\m.gguf", "file is malformed"),
        ("a/b:m.gguf#x.gguf", "file is malformed"),
        ("a/b:x\0.gguf", "file is malformed"),
        ("a/b:pytorch_model.bin", ".gguf"),
    ] {
        let error = HfModel::parse(text).unwrap_err();
        assert!(error.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn settings_come_from_hugging_faces_variables() {
    let s = settings(&[("HOME", "/h")]);
    assert_eq!((s.endpoint.as_str(), s.token.as_deref(), s.offline), ("https://huggingface.co", None, false));
    assert_eq!(s.cache_dir, PathBuf::from("/h/.cache/huggingface/hub"));
    assert_eq!(settings(&[("HOME", "/h"), ("LIMA_CACHE", "/c")]).cache_dir, PathBuf::from("/c/huggingface/hub"));
    let s = settings(&[
        ("HF_HOME", "/f"),
        ("LIMA_CACHE", "/c"),
        ("HF_ENDPOINT", "http://mirror/"),
        ("HF_TOKEN", " t\n"),
        ("HF_HUB_OFFLINE", "1"),
    ]);
    assert_eq!((s.endpoint.as_str(), s.token.as_deref(), s.offline), ("http://mirror", Some("t"), true));
    assert_eq!(s.cache_dir, PathBuf::from("/f/hub"));
    assert!(matches!(HfSettings::from_vars(|_| None), Err(HubError::NoCache)));
}

#[test]
fn a_saved_token_is_found() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::write(tmp.path().join("token"), "hf_saved\n").unwrap();
    let home = tmp.path().to_str().unwrap().to_owned();
    let read = |more: Option<&'static str>| {
        let home = home.clone();
        HfSettings::from_vars(move |name| match name {
            "HF_HOME" => Some(home.clone()),
            "HF_TOKEN" => more.map(str::to_owned),
            _ => None,
        })
    };
    assert_eq!(read(None).unwrap().token.as_deref(), Some("hf_saved"));
    assert_eq!(read(Some("given")).unwrap().token.as_deref(), Some("given"));
}
