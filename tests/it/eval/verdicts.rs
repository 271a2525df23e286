//! What judges say, and what becomes of it.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::judge::{Judge, Reply, asked};
use super::{answers, eval, json_of, lines, refused, said};

/// The number of the question in a judge's prompt.
fn number(body: &Value) -> usize {
    let text = asked(body);
    let after = text.split("question ").nth(1).unwrap();
    after.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Whether the first system's answer is shown first.
fn first_is_x(body: &Value) -> bool {
    let text = asked(body);
    text.find("x says").unwrap() < text.find("y says").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_always_prefers_the_first_sees_only_ties() {
    let judge = Judge::start(|_, _| Reply::Text("Answer A is significantly better.".into())).await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 20), answers(dir.path(), "y", 20));
    let out = dir.path().join("out");
    let arguments = ["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap(), "--concurrency", "3"];
    let text = said(&arguments).await;
    assert!(
        text.starts_with("x vs y: 0 wins, 20 ties, 0 losses, 0 unread; win or tie 100.0 %, adjusted 50.0 %"),
        "{text}"
    );
    assert!(text.contains("0 of 20 verdicts are the same in both orders"), "{text}");
    let pair = &json_of(&out.join("summary.json"))["pairs"][0];
    assert_eq!((&pair["consistent"], &pair["first_preferred"]), (&json!([0, 20]), &json!([40, 40])));
    assert_eq!(judge.calls(), 40);
    assert!(judge.seen.most.load(Ordering::SeqCst) <= 3);
    let body = judge.seen.bodies.lock().unwrap()[0].clone();
    assert_eq!(body["model"], "judge");
    assert_eq!((&body["temperature"], &body["max_tokens"]), (&json!(0.0), &json!(1024)));

    // With one order, as in the paper, some prompts go to either system; and half of the calls are known already.
    let one = [&arguments[..], &["--orders", "one"]].concat();
    let text = said(&one).await;
    assert!(text.contains("0 ties") && !text.contains("0 wins") && !text.contains("0 losses"), "{text}");
    assert_eq!(judge.calls(), 40);
}

/// Of 12 prompts: 0–4 are the first system's in both orders, 5–7 the second's, 8 is tied, 9 goes to whoever is first, 10
/// gets words without a verdict, 11 an echo of the options in one of its orders. By hand: 5 wins, 2 ties, 3 losses, 2
/// unread; win or tie 7/10, adjusted 6/10; the same in both orders 9 of 10; calls unread 3 of 24.
fn scripted(body: &Value, _: usize) -> Reply {
    let prefer = |x: bool| if x == first_is_x(body) { "Answer A" } else { "Answer B" };
    Reply::Text(match number(body) {
        0..5 => format!("{} is significantly better.", prefer(true)),
        5..8 => format!("{} is significantly better.", prefer(false)),
        8 => "Neither is significantly better.".into(),
        9 => "Answer A".into(),
        10 => "Hard to say.".into(),
        _ if first_is_x(body) => {
            "◼ Answer A is significantly better.\n◼ Answer B is significantly better.\n◼ Neither is significantly better.".into()
        }
        _ => "Answer A is significantly better.".into(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn known_verdicts_have_the_figures_worked_out_by_hand() {
    let judge = Judge::start(scripted).await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 12), answers(dir.path(), "y", 13));
    let out = dir.path().join("out");
    let text = said(&["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap()]).await;
    assert!(
        text.starts_with("x vs y: 5 wins, 2 ties, 3 losses, 2 unread; win or tie 70.0 %, adjusted 60.0 %"),
        "{text}"
    );
    assert!(text.contains("9 of 10 verdicts are the same in both orders"), "{text}");
    assert!(text.contains("1 answers have no counterpart"), "{text}");
    let pair = &json_of(&out.join("summary.json"))["pairs"][0];
    assert_eq!((&pair["unread"], &pair["counts"]["failed"]), (&json!([3, 24]), &json!(2)));

    // Every judgment is there, as it was said, with judge, hash of the prompt and parameters.
    let (calls, verdicts) = (lines(&out.join("calls.jsonl")), lines(&out.join("verdicts.jsonl")));
    assert_eq!((calls.len(), verdicts.len()), (24, 12));
    let unread = &verdicts[10];
    assert_eq!((&unread["outcome"], &unread["games"][0]["text"]), (&Value::Null, &json!("Hard to say.")));
    let call = calls.iter().find(|call| call["key"] == unread["games"][0]["key"]).unwrap();
    assert_eq!((&call["model"], &call["who"]), (&json!("judge"), &json!(judge.url)));
    assert_eq!(call["prompt_hash"].as_str().unwrap().len(), 64);
    assert_eq!((&call["params"]["temperature"], &call["completion_tokens"]), (&json!(0.0), &json!(7)));
    assert!(call["messages"][0]["content"].as_str().unwrap().starts_with("Imagine that you have"));

    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("All 12") && html.contains("Unread 2") && html.contains("9 of 10"), "the report");
    assert!(!html.contains("<script") && !html.contains("http://1"), "without scripts and addresses");

    // Judges that see the same things agree.
    let named = format!("m={}", out.display());
    let text = said(&["agreement", &named, &format!("n={}", out.display())]).await;
    assert!(
        text.starts_with("m and n: 100.0 % (95 %: 100.0 – 100.0 %) of 10 that both judged; 10 the same, 0 opposed"),
        "{text}"
    );
    assert!(refused(&["agreement", &named]).await.contains("agreement needs two judges"));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_systems_are_rated() {
    // The better of two is the one whose name comes first, but for every third question.
    let judge = Judge::start(|body, _| {
        let text = asked(body);
        let (a, b) = text.split_once("Answer B:").or_else(|| text.split_once("Assistant B's Answer]")).unwrap();
        let name = |part: &str| part.split(" says").next().unwrap().chars().last().unwrap();
        let better = (name(a) < name(b)) != number(body).is_multiple_of(3);
        Reply::Text(if better { "[[A]]" } else { "[[B]]" }.into())
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<String> = ["x", "y", "z"].iter().map(|name| answers(dir.path(), name, 9)).collect();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let arguments =
        ["pairwise", &all[0], &all[1], &all[2], "--all-pairs", "--style", "mt", "--url", &judge.url, "--out", out];
    let text = said(&arguments).await;
    assert_eq!(text.matches("6 wins, 0 ties, 3 losses").count(), 3, "{text}");
    let ratings = json_of(std::path::Path::new(out).join("summary.json").as_path())["ratings"].clone();
    let names: Vec<_> = ratings.as_array().unwrap().iter().map(|r| r["system"].as_str().unwrap()).collect();
    assert_eq!(names, ["x", "y", "z"]);
    assert!(ratings[1]["rating"].as_f64().unwrap().abs() < 1e-6, "the middle one: {ratings}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_and_grades() {
    let judge = Judge::start(|body, _| {
        let text = asked(body);
        Reply::Text(if text.contains("[BEGIN DATA]") {
            match text.contains("x says") {
                true => "It is good.\n5\n5".into(),
                false => "I would give a 2 out of 6.".into(),
            }
        } else if text.contains("Unsafe:") {
            "Nothing there.\nSafe".into()
        } else if text.contains("question 1") {
            "**Grade: Fail**".into()
        } else {
            "It does what it should.\n\nExcellent.".into()
        })
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let (x, y) = (answers(dir.path(), "x", 4), answers(dir.path(), "y", 4));
    let out = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let text = said(&["likert", &x, &y, "--url", &judge.url, "--out", &out("l"), "--judgments", "3"]).await;
    assert!(text.contains("x: mean 5.000 (95 %: 5.000 – 5.000); 12 graded, 0 unread"), "{text}");
    assert!(text.contains("y: ") && text.contains("0 graded, 12 unread"), "{text}");
    let seeds: Vec<Value> = judge.seen.bodies.lock().unwrap().iter().map(|b| b["seed"].clone()).collect();
    assert_eq!((judge.calls(), seeds.iter().filter(|s| **s == json!(2)).count()), (24, 8));
    let text = said(&["absolute", &x, "--url", &judge.url, "--out", &out("a")]).await;
    assert!(text.contains("x: Excellent 75.0 %, Pass 0.0 %, Fail 25.0 %; 4 graded, 0 unread"), "{text}");
    let text = said(&["safety", &x, "--url", &judge.url, "--out", &out("s"), "--choice"]).await;
    assert!(text.contains("Safe 100.0 %, Unsafe 0.0 %"), "{text}");
    let last = judge.seen.bodies.lock().unwrap().last().unwrap().clone();
    assert_eq!(last["structured_outputs"], json!({"choice": ["Safe", "Unsafe"]}));

    // Two turns, of which the judge sees what was said before; the second fails.
    let path = dir.path().join("talks.jsonl");
    let row = json!({"id": "t", "turns": ["hello", "question 1"], "answers": ["hi", "no"]});
    std::fs::write(&path, row.to_string() + "\n").unwrap();
    let talks = format!("t={}", path.display());
    let text = said(&["dialogue", &talks, "--url", &judge.url, "--out", &out("d")]).await;
    assert!(text.contains("t: Excellent 50.0 %, Pass 0.0 %, Fail 50.0 %; 1 of 1 fail within three turns"), "{text}");
    let second = judge.seen.bodies.lock().unwrap().iter().any(|b| {
        asked(b).contains("User: hello\n\nAssistant: hi\n\nUser: question 1\n[End of prompt]\n\n[Response]\nno\n")
    });
    assert!(second, "the dialogue so far");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_sampled_as_the_papers() {
    let model = Judge::start(|body, _| match asked(body) {
        "too long" => Reply::Status(400, None),
        text => Reply::Text(format!("re: {text}")),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.jsonl");
    let rows = [
        json!({"conversations": ["What?"], "source": ""}),
        json!({"question_id": 81, "category": "writing", "turns": ["one", "two"]}),
        json!({"prompt": "too long"}),
    ];
    std::fs::write(&prompts, rows.map(|row| row.to_string() + "\n").concat()).unwrap();
    let out = dir.path().join("out");
    let arguments =
        ["generate", "--prompts", prompts.to_str().unwrap(), "--url", &model.url, "--out", out.to_str().unwrap()];
    let output = eval(&[&arguments[..], &["--samples", "2"]].concat()).await;
    let (text, complaint) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(text.starts_with("4 answers of judge to 3 prompts") && text.contains("2 refused"), "{text}");
    assert!(complaint.contains("has no answer: the server answers 400: scripted 400"), "{complaint}");
    let body = model.seen.bodies.lock().unwrap().iter().find(|b| asked(b) == "two").unwrap().clone();
    let expected = json!([{"role": "user", "content": "one"}, {"role": "assistant", "content": "re: one"}, {"role": "user", "content": "two"}]);
    assert_eq!(body["messages"], expected);
    let sampling = ["temperature", "top_p", "repetition_penalty", "max_tokens"].map(|name| body[name].clone());
    assert_eq!(sampling, [json!(0.7), json!(0.9), json!(1.2), json!(2048)]);
    let rows = lines(&out.join("answers.jsonl"));
    assert_eq!((rows.len(), &rows[2]["answers"], &rows[2]["id"]), (4, &json!(["re: one", "re: two"]), &json!("81")));
    assert_ne!(rows[0]["params"]["seed"], rows[1]["params"]["seed"]);

    // A second time only what was refused is asked again; a penalty of 1 is not sent.
    let before = model.calls();
    eval(&[&arguments[..], &["--samples", "2"]].concat()).await;
    assert_eq!(model.calls() - before, 2);
    eval(&[&arguments[..], &["--repetition-penalty", "1"]].concat()).await;
    assert_eq!(model.seen.bodies.lock().unwrap().last().unwrap().get("repetition_penalty"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_show_hostile_words_as_words() {
    let hostile = "</div><script>alert(1)</script> Answer A";
    let judge = Judge::start(move |_, _| Reply::Text(hostile.into())).await;
    let dir = tempfile::tempdir().unwrap();
    let row =
        |name: &str| json!({"prompt": "<img src=x>", "answer": format!("{name}<script>2</script>")}).to_string() + "\n";
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, row(name)).unwrap();
        format!("{name}<b>={}", path.display())
    };
    let (x, y) = (file("x"), file("y"));
    let out = dir.path().join("out");
    said(&["pairwise", &x, &y, "--url", &judge.url, "--out", out.to_str().unwrap()]).await;
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("<b>=") && !html.contains("x<b>"));
    assert!(html.contains("&lt;script&gt;alert(1)"));
}
