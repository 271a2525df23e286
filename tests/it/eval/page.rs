//! The page on which people judge, over a real socket.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lima::eval::answers::{Named, read_all};
use lima::eval::human::{Study, serve};
use serde_json::{Value, json};

use super::{answers, lines, said};

#[tokio::test(flavor = "multi_thread")]
async fn decisions_over_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let named: Vec<String> = ["secretone", "secrettwo"].iter().map(|name| answers(dir.path(), name, 3)).collect();
    let parsed: Vec<Named> = named.iter().map(|text| text.parse().unwrap()).collect();
    let systems = read_all(&parsed).unwrap();
    let db = dir.path().join("study.sqlite");
    let study = Arc::new(Study::open(&db, &systems[0], &systems[1], 5).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, study));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = |path: &str, body: Value| {
        let request = client.post(format!("{base}/{path}")).json(&body);
        async move {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.json::<Value>().await.unwrap_or_default())
        }
    };

    let page = client.get(&base).send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    assert!(page.text().await.unwrap().contains("Which answer is better?"));
    for file in ["page.css", "page.js"] {
        assert_eq!(client.get(format!("{base}/{file}")).send().await.unwrap().status(), 200);
    }

    let mut seen = Vec::new();
    for done in 0..3 {
        let (status, body) = post("next", json!({"person": "Ann"})).await;
        let item = &body["item"];
        assert_eq!((status, &item["done"], &item["total"]), (200, &json!(done), &json!(3)));
        assert!(item.get("a").is_none() && item.get("swapped").is_none(), "blind: {item}");
        seen.push(item["id"].clone());
        let choice = if item["left"][0].as_str().unwrap().starts_with("secretone") { "left" } else { "right" };
        let choice = if done == 2 { "neither" } else { choice };
        let (status, _) = post("decide", json!({"person": "Ann", "id": item["id"], "choice": choice})).await;
        assert_eq!(status, 200);
    }
    assert_eq!(post("next", json!({"person": "Ann"})).await.1["item"], Value::Null);
    assert_eq!(post("undo", json!({"person": "Ann"})).await.1["id"], seen[2]);
    assert_eq!(post("next", json!({"person": "Ann"})).await.1["item"]["id"], seen[2]);
    for (path, body) in [
        ("next", json!({"person": " "})),
        ("decide", json!({"person": "Ann", "id": "9", "choice": "left"})),
        ("decide", json!({"person": "Ann", "id": "1", "choice": "up"})),
        ("decide", json!({"person": "Ann"})),
    ] {
        let (status, _) = post(path, body.clone()).await;
        assert!((400..500).contains(&status), "{body}");
    }

    // The decisions are verdicts, which agree with themselves.
    let file = dir.path().join("people.jsonl");
    let file = file.to_str().unwrap();
    let text = said(&["human", &named[0], &named[1], "--db", db.to_str().unwrap(), "--export", file]).await;
    assert!(text.starts_with("2 decisions"), "{text}");
    let rows = lines(Path::new(file));
    assert!(rows.iter().all(|row| row["outcome"] == "win" && row["judge"] == "Ann"), "{rows:?}");
    let text = said(&["agreement", &format!("a={file}"), &format!("b={file}")]).await;
    assert!(text.starts_with("a and b: 100.0 %"), "{text}");
}

/// All of it is checked by `scripts/eval-page-test`.
#[test]
fn in_a_browser() {
    let Some(browser) = std::env::var_os("LIMA_CHROMIUM") else {
        println!("skipped: LIMA_CHROMIUM does not name Chromium");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/eval-page-test");
    let mut command = Command::new("python3");
    command.arg(script).args(["--lima", env!("CARGO_BIN_EXE_lima")]);
    let output = command.env("LIMA_CHROMIUM", browser).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}
