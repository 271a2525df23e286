//! Servers that fail, and processes that are killed.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::judge::{Judge, Reply, asked};
use super::{answers, command, json_of, lines, refused, said};

/// Every call fails in its own way before it succeeds: nothing is lost, and nothing is kept twice.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again() {
    let judge = Judge::start(|body, before| {
        let n = asked(body).len();
        match (n + before) % 6 {
            _ if before > 4 => Reply::Text("Answer A".into()),
            0 => Reply::Status(429, Some(0)),
            1 => Reply::Status(503, None),
            2 => Reply::Broken,
            3 => Reply::Garbage,
            4 => Reply::Status(500, None),
            _ => Reply::Text("Answer A".into()),
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 30), answers(dir.path(), "y", 30));
    let out = dir.path().join("out");
    let arguments = ["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap(), "--backoff", "0"];
    let text = said(&arguments).await;
    assert!(text.contains("0 wins, 30 ties, 0 losses, 0 unread"), "{text}");
    let calls = lines(&out.join("calls.jsonl"));
    let mut keys: Vec<&str> = calls.iter().map(|call| call["key"].as_str().unwrap()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((calls.len(), keys.len()), (60, 60));
    assert!(judge.calls() > 60);
}

/// What cannot be had now is said, what is done is kept, and the next run asks for the rest alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_gives_up_can_go_on() {
    let judge = Judge::start(|body, before| match asked(body).contains("question 7\n") && before < 3 {
        true => Reply::Status(529, None),
        false => Reply::Text("Answer A".into()),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 10), answers(dir.path(), "y", 10));
    let out = dir.path().join("out");
    let arguments =
        ["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap(), "--backoff", "0", "--retries", "2"];
    let complaint = refused(&arguments).await;
    let expected = "lima: 2 of 20 found no answer (the server answers 529: scripted 529); what is done is kept";
    assert!(complaint.starts_with(expected), "{complaint}");
    assert!(!out.join("summary.json").exists());
    let before = judge.calls();
    said(&arguments).await;
    assert_eq!(judge.calls() - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_said_at_once() {
    let judge = Judge::start(|_, _| Reply::Status(401, None)).await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 50), answers(dir.path(), "y", 50));
    let out = dir.path().join("out");
    let arguments = ["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap(), "--concurrency", "2"];
    let complaint = refused(&arguments).await;
    assert!(complaint.contains("the server answers 401: scripted 401"), "{complaint}");
    assert!(judge.calls() <= 2, "{}", judge.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_are_refused_count_as_unread() {
    let judge = Judge::start(|body, _| match asked(body).contains("question 3\n") {
        true => Reply::Status(400, None),
        false => Reply::Text("Neither".into()),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 5), answers(dir.path(), "y", 5));
    let out = dir.path().join("out");
    let text = said(&["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap()]).await;
    assert!(text.contains("0 wins, 4 ties, 0 losses, 1 unread"), "{text}");
    let text = std::fs::read_to_string(out.join("verdicts.jsonl")).unwrap();
    assert!(text.contains("the server answers 400: scripted 400"));
}

/// Killed in the middle, without warning: the next run asks for what is missing, and ends as if nothing had happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_goes_on() {
    const PROMPTS: usize = 40;
    // The first 25 calls are answered, then nobody is until the process is dead.
    let (hangs, answered) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0));
    let hanging = Arc::clone(&hangs);
    let judge = Judge::start(move |body, _| match answered.fetch_add(1, SeqCst) {
        25.. if hanging.load(SeqCst) => Reply::Silence,
        _ => Reply::Text(if asked(body).len().is_multiple_of(3) { "Answer A" } else { "Answer B" }.into()),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", PROMPTS), answers(dir.path(), "yy", PROMPTS));
    let (out, fresh) = (dir.path().join("out"), dir.path().join("fresh"));
    let arguments = ["pairwise", &x, &y, "--url", &judge.url, "--concurrency", "4", "--out"];
    let killed = [&arguments[..], &[out.to_str().unwrap()]].concat();
    let mut child = command().args(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let calls = out.join("calls.jsonl");
    let whole = || std::fs::read_to_string(&calls).unwrap_or_default().matches('\n').count();
    // All four are waiting for an answer that does not come.
    while whole() < 25 || judge.calls() < 29 {
        assert!(child.try_wait().unwrap().is_none());
        tokio::task::yield_now().await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Whatever it was writing may be torn.
    let text = std::fs::read_to_string(&calls).unwrap();
    std::fs::write(&calls, text + "{\"key\":\"torn").unwrap();

    hangs.store(false, SeqCst);
    let before = judge.calls();
    let text = said(&killed).await;
    assert_eq!(judge.calls() - before, 2 * PROMPTS - 25, "nothing is asked twice");
    let keys: BTreeSet<String> = lines(&calls).iter().map(|call| call["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!((keys.len(), lines(&calls).len()), (2 * PROMPTS, 2 * PROMPTS), "nothing is lost or kept twice");

    let whole = said(&[&arguments[..], &[fresh.to_str().unwrap()]].concat()).await;
    assert_eq!(text.lines().next(), whole.lines().next());
    assert_eq!(json_of(&out.join("summary.json")), json_of(&fresh.join("summary.json")));
    assert_eq!(lines(&out.join("verdicts.jsonl")), lines(&fresh.join("verdicts.jsonl")));
}
