//! The load test tool of `benches/load`: its pure parts, and the whole against a server over the fake executor.

#[allow(dead_code)] // Its `main` is the bench's.
#[path = "../../benches/load/mod.rs"]
mod tool;

use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use crate::http::{Server, Setup};
use tool::arrivals::{Arrivals, gamma};
use tool::cli::{Cli, Load};
use tool::client::{Exchange, Outcome, Usage};
use tool::compare::ratios;
use tool::lengths::{Lengths, draw};
use tool::metrics::{Record, Slo, Summary};
use tool::prompts::{FileConversation, Prompts, Shape, parse};
use tool::report::Report;
use tool::rng::Rng;
use tool::sse::SseParser;
use tool::stats::{Distribution, quantile};
use tool::words::WordRate;

/// What a parser makes of these pieces.
fn events(pieces: &[&[u8]]) -> Vec<String> {
    let (mut parser, mut all) = (SseParser::default(), Vec::new());
    for piece in pieces {
        parser.push(piece, |data| all.push(data.to_owned()));
    }
    all
}

#[test]
fn events_do_not_depend_on_where_the_stream_is_cut() {
    let stream = "data: {\"a\":\"wörld 🎈\"}\r\n\r\n: comment\nevent: x\ndata:one\ndata: two\n\n\ndata: three\r\rdata: [DONE]\n\ndata: cut";
    let whole = events(&[stream.as_bytes()]);
    assert_eq!(whole, ["{\"a\":\"wörld 🎈\"}", "one\ntwo", "three", "[DONE]"]);
    for i in 0..=stream.len() {
        let (a, b) = stream.as_bytes().split_at(i);
        assert_eq!(events(&[a, b]), whole, "cut at {i}");
    }
    let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
    assert_eq!(events(&bytes), whole);
}

#[test]
fn quantiles_are_numpys() {
    assert_eq!(quantile(&[], 0.5), None);
    assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
    // numpy.quantile([1, 2, 4, 8], [0, .5, .9, .99, 1])
    for (q, expected) in [(0.0, 1.0), (0.5, 3.0), (0.9, 6.8), (0.99, 7.88), (1.0, 8.0)] {
        let value = quantile(&[1.0, 2.0, 4.0, 8.0], q).unwrap();
        assert!((value - expected).abs() < 1e-12, "{q}: {value}");
    }
    let d = Distribution::of(vec![8.0, 1.0, 4.0, 2.0]).unwrap();
    assert_eq!((d.count, d.mean, d.p50, d.max), (4, 3.75, 3.0, 8.0));
    assert_eq!(Distribution::of(Vec::new()), None);
}

#[test]
fn gaps_have_the_mean_and_spread_of_their_distribution() {
    for shape in [0.25, 1.0, 4.0] {
        let mut rng = Rng::new(1, 2);
        let draws: Vec<f64> = (0..100_000).map(|_| gamma(&mut rng, shape)).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((mean / shape - 1.0).abs() < 0.03, "shape {shape}: mean {mean}");
        assert!((variance / shape - 1.0).abs() < 0.05, "shape {shape}: variance {variance}");
    }
    let last = Arrivals::new(3, 5.0, 1.0).nth(50_000).unwrap().as_secs_f64();
    assert!((last / 10_000.0 - 1.0).abs() < 0.03, "50,000 arrivals at 5/s took {last} s");
    // In a Poisson process 1 - 1/e of the gaps are shorter than their mean.
    let times: Vec<f64> = Arrivals::new(4, 2.0, 1.0).take(50_001).map(|t| t.as_secs_f64()).collect();
    let short = times.windows(2).filter(|w| w[1] - w[0] < 0.5).count() as f64 / 5e4;
    assert!((short - 0.632).abs() < 0.01, "{short}");
    assert!(Arrivals::new(3, f64::INFINITY, 1.0).take(10).all(|t| t.is_zero()));
    let (a, b) = (Arrivals::new(9, 1.0, 0.5), Arrivals::new(9, 1.0, 0.5));
    assert!(a.zip(b).take(100).all(|(a, b)| a == b));
}

#[test]
fn lengths_are_read_and_drawn() {
    assert_eq!("128".parse(), Ok(Lengths::Fixed(128)));
    assert_eq!("16-64".parse(), Ok(Lengths::Uniform(16, 64)));
    assert_eq!("lima".parse(), Ok(Lengths::Lima(1.0)));
    assert_eq!("lima:0.25".parse(), Ok(Lengths::Lima(0.25)));
    for bad in ["", "0", "64-16", "lima:", "lima:-1", "lima:nan", "1-2-3", "x"] {
        assert!(bad.parse::<Lengths>().is_err(), "{bad:?}");
    }
    let mut rng = Rng::new(0, 0);
    let mut seen = [false; 4];
    for _ in 0..1000 {
        let (input, output) = draw(Lengths::Uniform(3, 6), Lengths::Fixed(9), &mut rng);
        seen[input as usize - 3] = true;
        assert_eq!(output, 9);
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn limas_lengths_have_the_means_of_the_data() {
    // Of the 1,000 single-turn training examples, in SmolLM2's tokens: 54.7 and 597.1. The paper counts LLaMA's.
    let mut rng = Rng::new(5, 5);
    let (mut input, mut output) = (0.0, 0.0);
    for _ in 0..100_000 {
        let (i, o) = draw(Lengths::Lima(1.0), Lengths::Lima(1.0), &mut rng);
        assert!(i <= 1737 && o <= 3614);
        (input, output) = (input + f64::from(i) / 1e5, output + f64::from(o) / 1e5);
    }
    assert!((input / 54.7 - 1.0).abs() < 0.03, "{input}");
    assert!((output / 597.1 - 1.0).abs() < 0.03, "{output}");
}

fn shape() -> Shape {
    Shape {
        seed: 1,
        input: Lengths::Fixed(20),
        turn_input: Lengths::Fixed(5),
        output: Lengths::Uniform(1, 9),
        turns: 2,
        shared_prefix: 0,
        prefix_groups: 1,
        allow_repeats: false,
    }
}

#[test]
fn conversations_depend_on_seed_and_number_and_are_unique() {
    let make = |shape: Shape| Prompts::new(shape, WordRate::ONE, None);
    let (a, b) = (make(shape()), make(shape()));
    let other = make(Shape { seed: 2, ..shape() });
    let mut starts = std::collections::HashSet::new();
    for n in 0..2000 {
        let c = a.conversation(n);
        assert_eq!(c, b.conversation(n));
        assert_ne!(c.turns[0].user, other.conversation(n).turns[0].user);
        let words = |i: usize| c.turns[i].user.split(' ').count();
        assert_eq!((c.turns.len(), words(0), words(1)), (2, 20, 5));
        let start: Vec<&str> = c.turns[0].user.split(' ').take(8).collect();
        assert!(starts.insert(start.join(" ")), "conversation {n} begins like another");
    }
    let shared = make(Shape { shared_prefix: 30, prefix_groups: 3, ..shape() });
    let prefixes: std::collections::HashSet<String> =
        (0..100).map(|n| shared.conversation(n).system.unwrap()).collect();
    assert_eq!(prefixes.len(), 3);
    assert_eq!(WordRate::from_probes([40, 152]).unwrap().words(128), 64);
    assert!(WordRate::from_probes([40, 40]).is_none() && WordRate::from_probes([41, 40]).is_none());
}

#[test]
fn files_of_every_kind_are_read() {
    let of = |users: &[&str], system: Option<&str>| FileConversation {
        system: system.map(str::to_owned),
        users: users.iter().map(|&u| u.to_owned()).collect(),
    };
    let openai = json!({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "c"}]}]});
    assert_eq!(parse(&openai.to_string()).unwrap(), of(&["a", "c"], Some("S")));
    let lima = json!({"conversations": ["a", "b", "c"], "source": "multi_turn"});
    assert_eq!(parse(&lima.to_string()).unwrap(), of(&["a", "c"], None));
    let sharegpt = json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]});
    assert_eq!(parse(&sharegpt.to_string()).unwrap(), of(&["a"], None));
    assert_eq!(parse(r#"{"prompt": "a"}"#).unwrap(), of(&["a"], None));
    for bad in ["", "3", "{}", r#"{"messages": []}"#, r#"{"messages": [{}]}"#, r#"{"conversations": [3]}"#] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
    // All of the file before any is used again, and then marked as new.
    let file: Vec<_> = ["a", "b", "c"].iter().map(|u| of(&[u, "later"], None)).collect();
    let prompts = Prompts::new(shape(), WordRate::ONE, Some(file));
    let mut firsts: Vec<String> = (0..6).map(|n| prompts.conversation(n).turns[0].user.clone()).collect();
    firsts.sort();
    assert_eq!(firsts, ["(1) a", "(1) b", "(1) c", "a", "b", "c"]);
}

/// A request sent `start` ms after the origin, with chunks at these times after it, in ms.
fn record(origin: Instant, start: u64, chunks: &[u64], end: u64, tokens: u64, wanted: Option<u32>) -> Record {
    let sent = origin + Duration::from_millis(start);
    let usage: Usage = serde_json::from_value(json!({
        "prompt_tokens": 10, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 4},
    }))
    .unwrap();
    let seen = Exchange {
        sent,
        chunks: chunks.iter().map(|&ms| sent + Duration::from_millis(ms)).collect(),
        end: sent + Duration::from_millis(end),
        text: String::new(),
        usage: Some(usage),
        finish: Some("length".into()),
        outcome: Outcome::Ok,
    };
    Record::new(&seen, origin, wanted)
}

#[test]
fn metrics_are_what_their_names_say() {
    let origin = Instant::now();
    // Two chunks that carry five tokens: the time per output token goes by tokens.
    let a = record(origin, 0, &[100, 300], 310, 5, Some(5));
    assert_eq!((a.ttft, a.tpot, a.e2e), (Some(100.0), Some(50.0), 310.0));
    assert_eq!(a.itl, [200.0]);
    let b = record(origin, 500, &[200, 400, 600], 700, 5, Some(5));
    let short = record(origin, 100, &[50], 60, 4, Some(5));
    assert_eq!(short.outcome, Outcome::failed("wrong length", "4 of 5 tokens, finish_reason length"));
    assert_eq!(record(origin, 100, &[50], 60, 4, None).outcome, Outcome::Ok);
    let slo: Slo = "ttft:150,tpot:60".parse().unwrap();
    assert_eq!([&a, &b, &short].map(|r| slo.met(r)), [true, false, false]);
    assert!("ttft".parse::<Slo>().is_err() && "ttfs:3".parse::<Slo>().is_err() && "ttft:-1".parse::<Slo>().is_err());

    let records = [a, b, short];
    let s = Summary::of(&[&records], Some(slo));
    assert_eq!((s.requests, s.succeeded, s.failures(), s.failed["wrong length"]), (3, 2, 1, 1));
    assert_eq!((s.prompt_tokens, s.cached_tokens, s.output_tokens), (20, Some(8), 10));
    assert!((s.seconds - 1.2).abs() < 1e-9);
    assert!((s.output_tokens_per_second - 10.0 / 1.2).abs() < 1e-9);
    assert!((s.goodput.unwrap() - 1.0 / 1.2).abs() < 1e-9);
    assert_eq!(s.ttft.unwrap().p50, 150.0);

    // Twice the time: the first server is twice as good, and its throughput too.
    let slow = [record(origin, 0, &[200, 600], 620, 5, None), record(origin, 1000, &[400, 800, 1200], 1400, 5, None)];
    let all = ratios("x", &[&records[..2]], &[&slow], None);
    for r in all.iter().filter(|r| !r.metric.starts_with("ITL")) {
        assert!((r.better - 2.0).abs() < 1e-9, "{}: {}", r.metric, r.better);
    }
}

/// The tool's flags, and what it makes of them.
async fn run(flags: &[&str]) -> Report {
    let cli = Cli::try_parse_from(["load", "--no-overhead"].iter().chain(flags)).unwrap();
    tool::execute(&cli).await.unwrap()
}

/// The fake executor's server answers at once with any number of one-byte tokens.
async fn server() -> (Server, String) {
    let server = Server::start(Setup { answer: "\0", ..Setup::default() }).await;
    let url = format!("http://{}", server.address);
    (server, url)
}

#[tokio::test]
async fn a_server_is_measured_in_a_closed_loop() {
    let (_server, url) = server().await;
    // A word is many tokens here, one a byte: prompts come out short.
    let flags = ["--concurrency", "1,3", "--requests", "6", "--input", "30", "--output", "4-9", "--slo", "ttft:60000"];
    let report = run(&[&["--url", &url], &flags[..]].concat()).await;
    assert!(report.tokens_per_word.unwrap() > 4.0);
    assert_eq!(report.loads(), ["1 user", "3 users"]);
    for point in &report.points {
        let s = &point.summary;
        assert_eq!((s.requests, s.succeeded, s.failures()), (6, 6, 0), "{:?}", s.examples);
        assert!((24..=54).contains(&s.output_tokens) && s.goodput.unwrap() > 0.0);
        assert!(s.ttft.is_some() && s.e2e.is_some());
    }
    let json: Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(json["points"][1]["rounds"][0].as_array().unwrap().len(), 6);
    assert_eq!(json["points"][0]["rounds"][0][0]["status"], "ok");
    let table = tool::markdown::text(&report);
    assert!(table.contains("| 3 users | TTFT |"), "{table}");
    let page = tool::html::page(&report);
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("NaN"), "{page}");
    assert!(!page.replace("http://www.w3.org", "").contains("src=\"http"));
    assert!(tool::plots::readme(&report).starts_with("<svg"));
}

#[tokio::test]
async fn two_servers_take_turns_and_are_asked_the_same() {
    let (_a, first) = server().await;
    let (_b, second) = server().await;
    let flags = ["--rate", "200", "--burstiness", "0.5", "--requests", "5", "--rounds", "3", "--input", "20"];
    let rest = ["--output", "5", "--names", "one,two", "--turns", "2", "--turn-input", "4", "--shared-prefix", "8"];
    let report = run(&[&["--url", &first, "--against", &second], &flags[..], &rest[..]].concat()).await;
    let [a, b] = report.points.as_slice() else { panic!("{} points", report.points.len()) };
    assert_eq!((a.rounds.len(), b.rounds.len()), (3, 3));
    assert_eq!((a.summary.requests, a.summary.succeeded), (30, 30), "{:?}", a.summary.examples);
    assert_eq!((a.summary.prompt_tokens, a.summary.output_tokens), (b.summary.prompt_tokens, b.summary.output_tokens));
    assert!(a.rounds.iter().flatten().filter(|r| r.turn == 0).all(|r| r.lag.is_some()));
    // The second turn carries the first and its answer, so its prompt is longer and mostly cached.
    let [turn1, turn2] = a.summary.turns.as_slice() else { panic!("{:?}", a.summary.turns) };
    assert!(turn2.prompt_tokens > turn1.prompt_tokens);
    assert!(report.ratios.iter().any(|r| r.metric == "TTFT p50 of turn 2, ms"));
    assert!(tool::markdown::text(&report).contains("one is better by"));
    let mut conversations: Vec<u64> = a.rounds.iter().flatten().map(|r| r.conversation).collect();
    conversations.sort_unstable();
    conversations.dedup();
    assert_eq!(conversations.len(), 15, "no round repeats another's prompts");
}

#[tokio::test]
async fn what_goes_wrong_is_counted_by_its_kind() {
    let (server, url) = server().await;
    let common = ["--requests", "4", "--input", "10", "--warmup", "0", "--no-calibrate"];
    let with = |flags: &[&'static str]| [&["--url", &url], &common[..], flags].concat().join("\n");
    let go = |flags: String| async move { run(&flags.split('\n').collect::<Vec<_>>()).await };
    let kinds = |report: &Report| report.points[0].summary.failed.clone().into_iter().collect::<Vec<_>>();

    let report = go(with(&["--output", "9", "--extra", r#"{"no_such_field": 1}"#])).await;
    assert_eq!(kinds(&report), [("HTTP 400".to_owned(), 4)]);
    assert!(report.points[0].summary.examples["HTTP 400"].contains("no_such_field"));
    assert!(tool::markdown::text(&report).contains("Failures"));

    let report = go(with(&["--output", "9", "--extra", r#"{"max_tokens": 5}"#])).await;
    assert_eq!(kinds(&report), [("wrong length".to_owned(), 4)]);

    // Abandoned requests are not failures, and the server forgets them.
    let report = go(with(&["--output", "300", "--disconnect", "1", "--disconnect-after", "1"])).await;
    assert_eq!((report.points[0].summary.disconnected, kinds(&report).len()), (4, 0));

    let report = go(with(&["--output", "6", "--endpoint", "completions"])).await;
    assert_eq!(report.points[0].summary.succeeded, 4, "{:?}", kinds(&report));

    drop(server);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}/v1/");
    let report = run(&["--url", &url, "--model", "m", "--no-calibrate", "--requests", "1"]).await;
    assert_eq!(kinds(&report), [("no connection".to_owned(), 1)]);
}

#[tokio::test]
async fn the_tool_measures_itself() {
    let overhead = tool::overhead::measure().await.unwrap();
    assert_eq!(overhead.chunk_delay.count, 1600);
    assert!(overhead.chunk_delay.p50 > 0.0 && overhead.chunks_per_second > 0.0);
}

#[test]
fn flags_are_checked() {
    let parse = |flags: &[&str]| Cli::try_parse_from(["load"].iter().chain(flags));
    let loads = |flags: &[&str]| parse(flags).unwrap().loads();
    assert_eq!(loads(&[]), [Load::Closed(1)]);
    assert_eq!(loads(&["--concurrency", "1,4"]), [Load::Closed(1), Load::Closed(4)]);
    assert_eq!(loads(&["--rate", "0.5,inf"]), [Load::Open(0.5), Load::Open(f64::INFINITY)]);
    assert_eq!(parse(&["--lima=--threads 1", "--rate", "1"]).unwrap().lima.as_deref(), Some("--threads 1"));
    for bad in [
        ["--concurrency", "0"],
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--disconnect", "2"],
        ["--extra", "[]"],
        ["--slo", "x:1"],
        ["--input", "0"],
        ["--turns", "0"],
    ] {
        assert!(parse(&bad).is_err(), "{bad:?}");
    }
    assert!(parse(&["--url", "http://a", "--lima"]).is_err());
    assert_eq!(tool::servers::split("--model 'a b' -x\"\"").unwrap(), ["--model", "a b", "-x"]);
    assert!(tool::servers::split("'a").is_err());
}

#[test]
fn plots_are_well_formed_whatever_their_text() {
    assert_eq!(lima::plot::escape("<a & \"b\">\u{1}"), "&lt;a &amp; &quot;b&quot;&gt; ");
    for max in [0.0, 1e-9, 0.7, 1.0, 19.0, 1234.5, f64::NAN, f64::INFINITY] {
        let ticks = lima::plot::ticks(0.0, max, 5, 0.0);
        assert!((2..=7).contains(&ticks.len()) && ticks[0] == 0.0, "{max}: {ticks:?}");
        assert!(!max.is_finite() || *ticks.last().unwrap() >= max, "{max}: {ticks:?}");
    }
}
