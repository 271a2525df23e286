//! Which plots a report has.

use super::chart::{Bars, Lines, STYLE, Series, Span, bars, timeline};
use super::client::Outcome;
use super::markdown::number;
use super::metrics::{Record, Summary};
use super::report::{Point, Report};
use super::stats::{Distribution, quantile};

/// Most rows of a timeline.
const ROWS: usize = 240;

/// A latency of a summary.
type Metric = (&'static str, fn(&Summary) -> Option<&Distribution>);

/// What a request adds to the quantiles of a latency.
type Values = fn(&Record) -> Vec<f64>;

const METRICS: [Metric; 4] = [
    ("Time to first token (TTFT)", |s| s.ttft.as_ref()),
    ("Time per output token (TPOT)", |s| s.tpot.as_ref()),
    ("Between chunks (ITL)", |s| s.itl.as_ref()),
    ("End to end (E2E)", |s| s.e2e.as_ref()),
];

/// Throughput against a latency: one line a server and percentile, one dot a load.
fn against(report: &Report, title: &str, y: &str, of: fn(&Summary) -> Option<&Distribution>) -> Lines {
    let mut series = Vec::new();
    for (i, server) in report.servers.iter().enumerate() {
        for (name, dash, pick) in
            [("p50", "", (|d| d.p50) as fn(&Distribution) -> f64), ("p99", "3 4", |d: &Distribution| d.p99)]
        {
            let points = report.of_server(i);
            let seen = points.iter().filter_map(|p| Some((p, of(&p.summary)?)));
            let (points, marks) = seen
                .map(|(p, d)| ((p.summary.output_tokens_per_second, pick(d)), p.load.clone()))
                .unzip::<_, _, Vec<_>, Vec<_>>();
            // Each load's name once.
            let marks = if name == "p50" { marks } else { Vec::new() };
            series.push(Series { name: format!("{} {name}", server.name), server: i, dash, points, marks });
        }
    }
    let (x, y) = ("output tokens per second".into(), y.into());
    Lines { title: title.into(), x, y, series, categories: None, dots: true }
}

/// A latency's percentiles over the loads of the sweep.
fn over_sweep(report: &Report, metric: &Metric) -> Lines {
    let mut series = Vec::new();
    for (i, server) in report.servers.iter().enumerate() {
        for (name, dash, pick) in [
            ("p50", "", (|d| d.p50) as fn(&Distribution) -> f64),
            ("p90", "8 4", |d: &Distribution| d.p90),
            ("p99", "3 4", |d: &Distribution| d.p99),
        ] {
            let points = report.of_server(i).into_iter().enumerate();
            let points = points.filter_map(|(x, p)| Some((x as f64, pick((metric.1)(&p.summary)?)))).collect();
            series.push(Series { name: format!("{} {name}", server.name), server: i, dash, points, marks: Vec::new() });
        }
    }
    let categories = Some(report.loads().into_iter().map(str::to_owned).collect());
    let x = if report.open { "conversations begun a second" } else { "concurrent users" };
    Lines { title: metric.0.into(), x: x.into(), y: "milliseconds".into(), series, categories, dots: true }
}

/// All quantiles of a value of the requests of one load, a line a server.
fn quantiles(report: &Report, load: &str, title: &str, value: Values) -> Lines {
    let series = report.points.iter().filter(|p| p.load == load).map(|p| {
        let good = p.rounds.iter().flatten().filter(|r| r.outcome == Outcome::Ok);
        let mut values: Vec<f64> = good.flat_map(value).collect();
        values.sort_by(f64::total_cmp);
        let points = (0..=200).filter_map(|i| Some((f64::from(i) / 2.0, quantile(&values, f64::from(i) / 200.0)?)));
        let name = report.servers[p.server].name.clone();
        Series { name, server: p.server, dash: "", points: points.collect(), marks: Vec::new() }
    });
    let (x, y) = ("percentile of requests".into(), "milliseconds".into());
    Lines { title: format!("{title}, {load}"), x, y, series: series.collect(), categories: None, dots: false }
}

/// Plots of throughput against latency.
pub fn throughput(report: &Report) -> Vec<String> {
    let ttft = against(report, "Throughput and TTFT", "TTFT, ms", METRICS[0].1);
    let tpot = against(report, "Throughput and TPOT", "TPOT, ms", METRICS[1].1);
    vec![ttft.svg(560.0, 360.0), tpot.svg(560.0, 360.0)]
}

/// Plots of percentiles: over the sweep, or of all requests where there is one load.
pub fn percentiles(report: &Report) -> Vec<String> {
    let loads = report.loads();
    if let [load] = loads.as_slice() {
        let of: [(&str, Values); 4] = [
            ("TTFT", |r| r.ttft.into_iter().collect()),
            ("TPOT", |r| r.tpot.into_iter().collect()),
            ("ITL", |r| r.itl.clone()),
            ("E2E", |r| vec![r.e2e]),
        ];
        return of.iter().map(|(title, value)| quantiles(report, load, title, *value).svg(560.0, 300.0)).collect();
    }
    METRICS.iter().map(|m| over_sweep(report, m).svg(560.0, 320.0)).collect()
}

fn spans(records: &[Record]) -> Vec<Span> {
    let span = |r: &Record| {
        let (odd, how) = match &r.outcome {
            Outcome::Ok => (None, "ok".to_owned()),
            Outcome::Disconnected => (Some("cut"), "abandoned".to_owned()),
            Outcome::Failed { kind, .. } => (Some("bad"), kind.clone()),
        };
        let ttft = r.ttft.map_or_else(String::new, |t| format!(", TTFT {} ms", number(t)));
        Span {
            start: r.start / 1e3,
            first: r.ttft.map(|t| (r.start + t) / 1e3),
            end: (r.start + r.e2e) / 1e3,
            odd,
            hint: format!("conversation {}, turn {}: {how}{ttft}, {} ms", r.conversation, r.turn + 1, number(r.e2e)),
        }
    };
    records.iter().take(ROWS).map(span).collect()
}

/// The requests of each load's last round over time; servers of one load have one scale.
pub fn timelines(report: &Report) -> Vec<(String, Vec<String>)> {
    let each = |load: &str| {
        let points: Vec<&Point> = report.points.iter().filter(|p| p.load == load).collect();
        let rows: Vec<(&Point, Vec<Span>)> = points
            .into_iter()
            .filter_map(|p| Some((p, spans(p.rounds.last().filter(|records| !records.is_empty())?))))
            .collect();
        let end = rows.iter().flat_map(|(_, spans)| spans).map(|s| s.end).fold(0.0, f64::max);
        let plots = rows.iter().map(|(p, spans)| {
            let total = p.rounds.last().map_or(0, Vec::len);
            let part =
                if total > spans.len() { format!(" (the first {} of {total})", spans.len()) } else { String::new() };
            let title = format!("{}, {load}: requests{part}", report.servers[p.server].name);
            timeline(&title, p.server, spans, end, 1120.0)
        });
        (load.to_owned(), plots.collect())
    };
    report.loads().into_iter().map(each).collect()
}

/// One plot that stands alone: bars of a single load, or a sweep's throughput against TTFT.
pub fn readme(report: &Report) -> String {
    let width = 760.0;
    let loads = report.loads();
    let plot = if let [load] = loads.as_slice() {
        let points: Vec<&Point> = report.points.iter().collect();
        let group = |title: &str, value: &dyn Fn(&Summary) -> Option<f64>| {
            let bar = |p: &&Point| Some((p.server, report.servers[p.server].name.clone(), value(&p.summary)?));
            Bars { title: title.into(), bars: points.iter().filter_map(bar).collect() }
        };
        let turns = points.iter().map(|p| p.summary.turns.len()).max().unwrap_or(0);
        let mut groups = vec![group("Output tokens per second", &|s| Some(s.output_tokens_per_second))];
        if turns > 1 {
            // On one scale, as turns are to be compared with each other.
            let bar = |p: &Point, turn: usize| {
                let ttft = p.summary.turns.iter().find(|t| t.turn == turn)?.ttft.as_ref()?.p50;
                Some((p.server, format!("{}, turn {turn}", report.servers[p.server].name), ttft))
            };
            let all = (1..=turns.min(4)).flat_map(|turn| points.iter().filter_map(move |p| bar(p, turn)));
            groups.push(Bars { title: "TTFT p50, ms".into(), bars: all.collect() });
        } else {
            groups.push(group("Time per output token p50, ms", &|s| Some(s.tpot.as_ref()?.p50)));
            groups.push(group("TTFT p50, ms", &|s| Some(s.ttft.as_ref()?.p50)));
            groups.push(group("TTFT p99, ms", &|s| Some(s.ttft.as_ref()?.p99)));
        }
        bars(&format!("Streaming, {load}"), &report.workload, &groups, width)
    } else {
        against(report, "Throughput and time to first token", "TTFT, ms", METRICS[0].1).svg(width, 400.0)
    };
    // An SVG in an <img> has no style sheet but its own.
    let paper = "<rect width=\"100%\" height=\"100%\" fill=\"var(--paper)\"/>";
    match plot.find('>') {
        Some(end) => format!("{}<style>{STYLE}</style>{paper}{}\n", &plot[..=end], &plot[end + 1..]),
        None => plot,
    }
}
