//! `lima chat` and `lima health`, against servers over the fake executor.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lima::chat::{Interrupt, Next, Options, Session};
use lima::http::Auth;
use serde_json::{Value, json};

use crate::http::{Server, Setup};
use crate::support::server::command;

fn options(server: &Server) -> Options {
    Options { url: server.url("/v1"), ..Options::default() }
}

/// Runs on a thread of its own, as the client blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Follows lines; returns what was written, and what each line led to.
fn follow(session: &mut Session, lines: &[&str]) -> (String, Vec<Result<Next, String>>) {
    let (interrupt, mut out) = (Interrupt::default(), Vec::new());
    let next = lines.iter().map(|line| session.line(line, &interrupt, &mut out).map_err(|e| e.to_string())).collect();
    (String::from_utf8(out).unwrap(), next)
}

fn said(session: &Session) -> Value {
    let turns: Vec<_> = session.conversation().messages().into_iter().map(|m| json!([m.role, m.content])).collect();
    json!(turns)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_in_the_terminal() {
    let server = Server::default().await;
    let options = Options { system: Some("Be kind.".into()), temperature: Some(0.0), ..options(&server) };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talks.jsonl");
    let save = format!("/save {}", file.display());
    let (session, out, next) = blocking(move || {
        let mut session = options.session().unwrap();
        let lines = [
            "/retry",
            "/save x",
            "hi",
            "two \\",
            "lines",
            "/retry",
            &save,
            &save,
            "/system -",
            "/edit three",
            "/nope",
            "",
        ];
        let (out, next) = follow(&mut session, &lines);
        (session, out, next)
    })
    .await;
    assert_eq!(session.model(), "test/model");
    assert_eq!(out.matches("Hello, wörld!\n").count(), 4, "{out}");
    let nothing = || Err("nothing was said yet".to_owned());
    use Next::{Answered, Listen};
    let expected = [nothing(), nothing(), Ok(Answered), Ok(Listen), Ok(Answered), Ok(Answered), Ok(Listen), Ok(Listen)];
    assert_eq!(next[..8], expected);
    assert_eq!(next[8..10], [Ok(Listen), Ok(Answered)]);
    assert_eq!(next[11], Ok(Listen));
    assert!(next[10].as_ref().unwrap_err().contains("'/nope'"));
    // The message was replaced, and the system prompt removed.
    let answer = "Hello, wörld!";
    assert_eq!(
        said(&session),
        json!([["user", "hi"], ["assistant", answer], ["user", "three"], ["assistant", answer]])
    );
    let numbers = session.numbers().unwrap();
    // A byte is a token, and so is the end.
    assert!(numbers.starts_with("15 tokens · ") && numbers.ends_with(" cached"), "{numbers}");

    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 2);
    let saved: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let expected = [
        turn("system", "Be kind."),
        turn("user", "hi"),
        turn("assistant", answer),
        turn("user", "two \nlines"),
        turn("assistant", answer),
    ];
    assert_eq!(saved, json!({ "messages": expected }));
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_stay_out_of_a_terminal() {
    let server = Server::start(Setup { answer: "a\u{1b}]0;b\u{7}c", ..Setup::default() }).await;
    let (base, interrupt) = (options(&server), Interrupt::default());
    let (shown, kept) = blocking(move || {
        let client = lima::chat::Client::new(&base.url, None).unwrap();
        let mut session = Session::new(client, "test/model".into(), None, Default::default(), false);
        let mut out = Vec::new();
        session.ask("hi".into(), &interrupt, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), said(&session))
    })
    .await;
    assert_eq!(shown, "a]0;bc\n");
    assert_eq!(kept[1][1], "a\u{1b}]0;b\u{7}c");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_the_answer_and_the_server() {
    let server = Server::default().await;
    server.control.hold();
    let base = options(&server);
    let interrupt = Arc::new(Interrupt::default());
    let inside = Arc::clone(&interrupt);
    let asking = tokio::task::spawn_blocking(move || {
        let mut session = base.session().unwrap();
        let mut out = Vec::new();
        session.ask("hi".into(), &inside, &mut out).unwrap();
        (said(&session), out)
    });
    server.until("a running request", |s| s.engine.stats().running.load(Relaxed) == 1).await;
    assert!(interrupt.stop());
    let (said, out) = asking.await.unwrap();
    // Nothing was answered, so nothing was asked.
    assert_eq!((said, out), (json!([]), vec![]));
    server.control.open();
    server.until("an idle server", |s| s.app.active() == 0).await;
}

/// Runs `lima chat` with `input`; its exit code, standard output and standard error.
async fn piped(server: &Server, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = command();
    command.arg("chat").args(["--url", &server.url("/v1")]).args(arguments);
    let input = input.to_owned();
    blocking(move || {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes() {
    let server = Server::default().await;
    let (code, out, err) = piped(&server, &["--seed", "1", "--top-k", "3", "--max-tokens", "5"], "Say\nhello.\n").await;
    assert_eq!((code, &*out, &*err), (Some(0), "Hello\n", ""));
    for (arguments, input, code, word) in [
        (&[][..], "", 1, "standard input is empty"),
        (&["--model", "other"][..], "hi", 1, "404: The model 'other' does not exist"),
        (&["--temperature", "9"][..], "hi", 1, "400: Invalid 'temperature'"),
        (&["--temperature", "hot"][..], "hi", 2, "--temperature"),
        (&["--no-such-flag"][..], "hi", 2, "--no-such-flag"),
    ] {
        let (got, out, err) = piped(&server, arguments, input).await;
        assert_eq!((got, &*out), (Some(code), ""), "{arguments:?}: {err}");
        assert!(err.lines().count() == 1 && err.starts_with("lima: ") && err.contains(word), "{arguments:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_servers_that_are_not_there() {
    let auth = Auth::new(&["sesame".into()], None).unwrap();
    let server = Server::start(Setup { auth, ..Setup::default() }).await;
    let (code, _, err) = piped(&server, &[], "hi").await;
    assert!(code == Some(1) && err.contains("401: You didn't provide an API key"), "{err}");
    let (code, _, err) = piped(&server, &["--api-key", "wrong-key"], "hi").await;
    assert!(code == Some(1) && err.contains("401: Incorrect API key") && !err.contains("wrong-key"), "{err}");
    let (code, out, err) = piped(&server, &["--api-key", "sesame"], "hi").await;
    assert_eq!((code, &*out, &*err), (Some(0), "Hello, wörld!\n", ""));

    let session = |url: &str| {
        let options = Options { url: url.into(), ..Options::default() };
        blocking(move || options.session().map(|_| ()).unwrap_err().to_string())
    };
    let error = session("http://127.0.0.1:1/v1").await;
    assert!(error.starts_with("http://127.0.0.1:1/v1 cannot be reached"), "{error}");
    let error = session(&server.url("/livez")).await;
    assert!(error.contains("401") || error.contains("404"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_asked_again() {
    let server = Server::start(Setup { max_num_seqs: 1, max_queued: 1, ..Setup::default() }).await;
    server.control.hold();
    let running = server.post(json!({"stream": true})).await;
    server.until("a running request", |s| s.engine.stats().running.load(Relaxed) == 1).await;
    let waiting = server.post(json!({"stream": true})).await;
    assert_eq!((running.status().as_u16(), waiting.status().as_u16()), (200, 200));
    let base = options(&server);
    let asking = tokio::task::spawn_blocking(move || {
        let (mut session, mut out) = (base.session().unwrap(), Vec::new());
        session.ask("hi".into(), &Interrupt::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    });
    server.until("a refusal", |s| String::from_utf8_lossy(&s.app.metrics.encode()).contains("status=\"429\"")).await;
    server.control.open();
    assert_eq!(asking.await.unwrap(), "Hello, wörld!\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn health() {
    let mut server = Server::start(Setup { load: false, ..Setup::default() }).await;
    let ask = |arguments: Vec<String>| {
        blocking(move || {
            let output = command().arg("health").args(arguments).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        })
    };
    let url = || vec!["--url".to_owned(), server.url("")];
    let (code, err) = ask(url()).await;
    assert!(code == Some(1) && err.contains("/readyz answers 503"), "{err}");
    let (url, port) = (url(), vec!["--port".to_owned(), server.address.port().to_string()]);
    server.load();
    assert_eq!(ask(url).await, (Some(0), String::new()));
    assert_eq!(ask(port).await, (Some(0), String::new()));
    let (code, err) = ask(vec!["--url".into(), "http://127.0.0.1:1".into()]).await;
    assert!(code == Some(1) && err.contains("cannot be reached"), "{err}");
}
