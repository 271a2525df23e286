//! What many clients at once see, and what they leave behind.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::server::{Server, ask, said, spelled};

/// Requests of mixed prompts and lengths.
fn mixed(i: usize) -> Value {
    let topic = ["the sea", "bread", "mountains and how they came to be", "music", "a clock"][i % 5];
    let words = "Think it over. ".repeat(i * 7 % 11);
    ask(&format!("Question {i}: {words}what is good about {topic}?"), 2 + (i as u32 * 11) % 23, i as u64)
}

#[tokio::test]
async fn streams_at_once_are_isolated() {
    let server = Arc::new(Server::start(&["--max-num-seqs", "64", "--kv-cache-memory", "192MiB"]).await);
    let tasks: Vec<_> = (0..64)
        .map(|i| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.stream(&mixed(i)).await.rest().await })
        })
        .collect();
    let mut together = Vec::new();
    for task in tasks {
        together.push(spelled(&task.await.unwrap(), 0));
    }
    assert!(together.iter().all(|(_, reason)| reason.is_some()));
    for (i, expected) in together.iter().enumerate() {
        assert_eq!(*expected, said(&server.chat(&mixed(i)).await, 0), "request {i} alone");
    }
}

#[tokio::test]
async fn a_short_request_overtakes_a_long_one() {
    let server = Server::start(&["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]).await;
    let mut long = ask("Write a long story about a lighthouse.", 120, 1);
    long["ignore_eos"] = json!(true);
    let mut running = server.stream(&long).await;
    for _ in 0..4 {
        assert!(running.next().await.is_some());
    }
    let short = ask("Say yes.", 4, 2);
    let rest = running.rest();
    tokio::pin!(rest);
    tokio::select! {
        biased;
        _ = &mut rest => panic!("the long one ended first"),
        answer = server.chat(&short) => assert!(said(&answer, 0).1.is_some()),
    }
    let chunks = rest.await;
    assert_eq!(spelled(&chunks, 0).1.as_deref(), Some("length"));
}

/// One of many short requests; every fifth is dropped midway, in turn before and after it is answered in part.
async fn visit(server: &Server, i: usize) {
    let mut body = ask(&format!("Number {i}. {}Say something short.", "Well. ".repeat(i % 7)), 4, i as u64);
    match i % 10 {
        4 => {
            body["max_tokens"] = json!(300);
            let mut stream = server.stream(&body).await;
            for _ in 0..3 {
                let _ = stream.next().await;
            }
        }
        9 => {
            body["max_tokens"] = json!(300);
            let patience = std::time::Duration::from_millis(30);
            let _ = tokio::time::timeout(patience, server.chat(&body)).await;
        }
        i if i % 2 == 0 => {
            let chunks = server.stream(&body).await.rest().await;
            assert!(spelled(&chunks, 0).1.is_some());
        }
        _ => assert!(said(&server.chat(&body).await, 0).1.is_some()),
    }
}

async fn visits(server: &Arc<Server>, range: std::ops::Range<usize>) {
    let places = Arc::new(Semaphore::new(24));
    let tasks: Vec<_> = range
        .map(|i| {
            let (server, places) = (Arc::clone(server), Arc::clone(&places));
            tokio::spawn(async move {
                let _place = places.acquire().await.unwrap();
                visit(&server, i).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // Those that were dropped take a step more.
    for _ in 0..500 {
        if server.metric("vllm:num_requests_running").await + server.metric("vllm:num_requests_waiting").await == 0.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn five_hundred_requests_leave_nothing_behind() {
    let server = Server::start(&["--kv-cache-memory", "48MiB", "--max-model-len", "1024"]).await;
    let server = Arc::new(server);
    visits(&server, 0..100).await;
    let before = server.resident();
    visits(&server, 100..500).await;
    let after = server.resident();
    assert_eq!(server.metric("vllm:num_requests_running").await, 0.0);
    assert_eq!(server.metric("vllm:num_requests_waiting").await, 0.0);
    assert_eq!(server.metric("lima:kv_blocks{state=\"in_use\"}").await, 0.0);
    assert!(server.metric("lima:kv_blocks{state=\"cached\"}").await > 0.0);
    assert_eq!(server.metric("lima:step_failures_total").await, 0.0);
    assert!(server.metric("vllm:request_success_total{finished_reason=\"abort\"}").await >= 50.0);
    println!("resident: {:.1} MiB after 100 requests, {:.1} MiB after 500", mib(before), mib(after));
    assert!(before.abs_diff(after) <= 16 << 20, "resident: {:.1} MiB, then {:.1} MiB", mib(before), mib(after));
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}
