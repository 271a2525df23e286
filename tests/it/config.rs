//! Flags, environment and file, through the binary and through the library.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lima::config::{ByteSize, Dtype, KvCacheDtype, LogFormat, Options};

fn lima(args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lima")).args(args).envs(env.iter().copied()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_wrong_value_is_one_line_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = dir.path().join(format!("{}.toml", text.len()));
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let wrong_key = file("port = 1\nmax-models = 3\n");
    let wrong_type = file("port = \"many\"\n");
    let wrong_size = file("kv-cache-memory = \"2 potatoes\"\n");
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case<'_>] = &[
        (&["--port", "x"], &[], "--port"),
        (&["--port", "70000"], &[], "--port"),
        (&["serve", "--device", "cuda"], &[], "--device"),
        (&["--device", "tpu"], &[], "--device"),
        (&["--dtype", "f16"], &[], "--dtype"),
        (&["--kv-cache-dtype", "int4"], &[], "--kv-cache-dtype"),
        (&[], &[("LIMA_KV_CACHE_DTYPE", "fp8")], "--kv-cache-dtype"),
        (&["--host", "nowhere"], &[], "--host"),
        (&["--kv-cache-memory", "2potatoes"], &[], "--kv-cache-memory"),
        (&["--max-num-seqs", "0"], &[], "--max-num-seqs"),
        (&["--max-model-len", "1"], &[], "--max-model-len"),
        (&["--tensor-parallel-size", "0"], &[], "--tensor-parallel-size"),
        (&["-tp", "many"], &[], "--tensor-parallel-size"),
        (&["serve", "-tp=2000"], &[], "--tensor-parallel-size"),
        (&["--chat-template", "/no/such/file"], &[], "--chat-template"),
        (&["--config", "/no/such/file"], &[], "--config"),
        (&["--config", &wrong_key], &[], "max-models"),
        (&["--config", &wrong_type], &[], "line 1"),
        (&["--config", &wrong_size], &[], "2 potatoes"),
        (&["--served-model-name", "a b"], &[], "--served-model-name"),
        (&["--api-key", "two words"], &[], "--api-key"),
        (&[], &[("LIMA_API_KEY", "")], "--api-key"),
        (&["--api-key-file", "/no/such/file"], &[], "--api-key-file"),
        (&["--no-such-flag"], &[], "--no-such-flag"),
        (&[], &[("LIMA_THREADS", "none")], "--threads"),
        (&[], &[("LIMA_MAX_QUEUED_REQUESTS", "0")], "--max-queued-requests"),
        (&["--max-queued-tokens", "0"], &[], "--max-queued-tokens"),
        (&["--queue-timeout", "soon"], &[], "--queue-timeout"),
        (&["--request-timeout", "99999999999"], &[], "--request-timeout"),
        (&["--watchdog-timeout", "0"], &[], "--watchdog-timeout"),
        (&["--idle-timeout", "0"], &[], "--idle-timeout"),
        (&["--max-connections", "0"], &[], "--max-connections"),
        (&["--max-header-size", "1"], &[], "--max-header-size"),
        (&["--metrics-port", "70000"], &[], "--metrics-port"),
        (&["--allowed-origins", "example.org"], &[], "--allowed-origins"),
        (&["--cors-origin", "https://example.org/path"], &[], "--allowed-origins"),
        (&["--ssl-certfile", "a.pem"], &[], "--ssl-keyfile"),
        (&["--tls-key", "a.pem"], &[], "--ssl-certfile"),
        (&["--tls-cert", "/no/such/file", "--tls-key", "/no/such/file"], &[], "--ssl-certfile"),
        (&["--log-format", "xml"], &[], "--log-format"),
        (&["--isolate-prefix-cache=maybe"], &[], "--isolate-prefix-cache"),
    ];
    for (args, env, name) in cases {
        let (code, text) = lima(args, env);
        assert_eq!(code, 2, "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.contains(name), "{args:?}: {text}");
    }
    assert_eq!(lima(&["--help"], &[]).0, 0);
    assert_eq!(lima(&["--version"], &[]).0, 0);
}

#[test]
fn flag_over_file_over_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lima.toml");
    let text = "port = 9000\nmax-num-seqs = 8\ndtype = \"q8_0\"\nkv-cache-memory = \"1.5GiB\"\n\
                enable-prefix-caching = false\nserved-model-name = [\"a\", \"b\"]\nseed = 5\n\
                kv-cache-dtype = \"int8\"\n";
    std::fs::write(&path, text).unwrap();
    let from = |options: Options| Options { config: Some(Path::to_owned(&path)), ..options }.resolve().unwrap();
    let config = from(Options { port: Some(0), ..Options::default() });
    assert_eq!((config.listen.port(), config.max_num_seqs, config.dtype), (0, 8, Dtype::Q8_0));
    assert_eq!(config.kv_cache_memory, Some(ByteSize(3 << 29)));
    assert_eq!(config.kv_cache_dtype, KvCacheDtype::Int8);
    assert!(config.to_string().contains("kv-cache-dtype          int8"));
    assert_eq!((config.prefix_caching, config.seed), (false, Some(5)));
    assert_eq!(config.served_model_name, ["a", "b"]);
    assert!(from(Options { enable_prefix_caching: Some(true), ..Options::default() }).prefix_caching);
    let default = Options::default().resolve().unwrap();
    assert_eq!(default.listen.to_string(), "127.0.0.1:8000");
    assert!(default.prefix_caching);
    assert_eq!(default.kv_cache_dtype, KvCacheDtype::Auto);
    let off = Options { no_enable_prefix_caching: true, enable_prefix_caching: Some(true), ..Options::default() };
    assert!(!off.resolve().unwrap().prefix_caching);
}

#[test]
fn limits_are_on_unless_they_are_turned_off() {
    let network = Options::default().resolve().unwrap().network;
    let seconds = Duration::from_secs;
    assert_eq!((network.queue_timeout, network.request_timeout), (Some(seconds(300)), Some(seconds(3600))));
    assert_eq!((network.idle_timeout, network.watchdog_timeout), (seconds(60), seconds(30)));
    assert_eq!((network.max_connections, network.max_header_size), (4096, 32 << 10));
    assert_eq!((network.metrics_port, network.tls, network.isolate_prefix_cache), (None, None, false));
    assert!(network.allowed_origins.is_empty());
    let off = Options { queue_timeout: Some(0), request_timeout: Some(0), ..Options::default() };
    let network = off.resolve().unwrap().network;
    assert_eq!((network.queue_timeout, network.request_timeout), (None, None));
    let origins = vec!["*".to_owned(), "http://localhost:3000".to_owned()];
    let set =
        Options { allowed_origins: Some(origins.clone()), log_format: Some(LogFormat::Json), ..Options::default() };
    let config = set.resolve().unwrap();
    assert_eq!((&config.network.allowed_origins, config.network.log_format), (&origins, LogFormat::Json));
    assert!(config.to_string().contains("allowed-origins         *, http://localhost:3000"), "{config}");
}

#[test]
fn sizes() {
    for (text, bytes) in
        [("17", 17), ("512MiB", 512 << 20), ("2GiB", 2 << 30), ("2g", 2 << 30), ("1.5 GB", 1_500_000_000)]
    {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for bad in ["", "GiB", "-1", "1e9", "1.2.3", "NaN", "9999999999TiB"] {
        assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
    }
    assert_eq!(ByteSize(512 << 20).to_string(), "512MiB");
    assert_eq!(ByteSize(1000).to_string(), "1000");
}
