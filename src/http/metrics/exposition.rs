//! Metrics whose numbers are counted elsewhere, written in Prometheus' text format as they are.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::{BLOCK_SIZE, EngineConfig, EngineStats, STEP_BUCKETS_MS, STEP_TOKEN_BUCKETS};
use crate::http::tenant::Tenant;

/// Writes one metric; each sample is its labels, in braces or empty, and its value.
fn metric(
    out: &mut Vec<u8>,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, impl Display)>,
) {
    let mut text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (labels, value) in samples {
        writeln!(text, "{name}{labels} {value}").expect("a String takes all");
    }
    out.extend(text.into_bytes());
}

/// Writes a histogram from counts of each bucket alone; one more of them than bounds.
fn histogram(
    out: &mut Vec<u8>,
    name: &str,
    help: &str,
    labels: &str,
    bounds: &[f64],
    counts: impl Iterator<Item = u64>,
    sum: f64,
) {
    let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
    let mut total = 0;
    for (i, count) in counts.enumerate() {
        total += count;
        let bound = bounds.get(i).map_or("+Inf".to_owned(), f64::to_string);
        writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}").expect("a String takes all");
    }
    writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {total}").expect("a String takes all");
    out.extend(text.into_bytes());
}

/// A label's value, as the format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Time and size of steps.
pub fn steps(out: &mut Vec<u8>, model: &str, stats: &EngineStats) {
    let labels = format!("engine=\"0\",model_name=\"{}\"", escape(model));
    let seconds = STEP_BUCKETS_MS.map(|ms| ms as f64 / 1000.0);
    let counts = stats.step_time_buckets.iter().map(|n| n.load(Relaxed));
    let sum = stats.step_time_sum_us.load(Relaxed) as f64 / 1e6;
    histogram(out, "lima:step_seconds", "Time of a step.", &labels, &seconds, counts, sum);
    let tokens = STEP_TOKEN_BUCKETS.map(|n| n as f64);
    let counts = stats.step_token_buckets.iter().map(|n| n.load(Relaxed));
    let sum = stats.step_token_sum.load(Relaxed) as f64;
    histogram(out, "vllm:iteration_tokens_total", "Tokens computed in a step.", &labels, &tokens, counts, sum);
}

/// The shape of the KV cache, as labels: what routers before several servers ask for.
pub fn cache_config(out: &mut Vec<u8>, model: &str, config: &EngineConfig) {
    let labels = format!(
        "{{block_size=\"{BLOCK_SIZE}\",enable_prefix_caching=\"{}\",engine=\"0\",model_name=\"{}\",num_gpu_blocks=\"{}\"}}",
        if config.enable_prefix_caching { "True" } else { "False" },
        escape(model),
        config.num_blocks,
    );
    metric(out, "vllm:cache_config_info", "gauge", "Blocks of the KV cache, on whatever device.", [(labels, 1)]);
}

/// What each key has had. Keys without a name are one: names are as many as the file has.
pub fn keys(out: &mut Vec<u8>, tenants: &[Arc<Tenant>]) {
    let mut names: Vec<&str> = tenants.iter().map(|t| t.name().unwrap_or_default()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |read: fn(&Tenant) -> u64| {
        let sum = |name: &str| tenants.iter().filter(|t| t.name().unwrap_or_default() == name).map(|t| read(t)).sum();
        let sample = |name: &&str| (format!("{{key=\"{}\"}}", escape(name)), sum(name));
        names.iter().map(sample).collect::<Vec<(String, u64)>>()
    };
    let mut write = |name: &str, kind: &str, help: &str, read: fn(&Tenant) -> u64| {
        metric(out, &format!("lima:key_{name}"), kind, help, of(read));
    };
    write("requests_total", "counter", "Requests let through, by key.", |t| t.counts.requests.load(Relaxed));
    write("limited_total", "counter", "Requests refused for a limit of the key.", |t| t.counts.limited.load(Relaxed));
    write("prompt_tokens_total", "counter", "Prompt tokens accepted.", |t| t.counts.prompt_tokens.load(Relaxed));
    write("generation_tokens_total", "counter", "Tokens generated.", |t| t.counts.generation_tokens.load(Relaxed));
    write("requests_running", "gauge", "Requests at the moment.", |t| t.running() as u64);
    write("sequences_queued", "gauge", "Sequences that wait to be computed.", |t| t.queued() as u64);
}

/// The process: names as Prometheus' own clients have them, where the system tells (Linux).
pub fn process(out: &mut Vec<u8>, connections: usize) {
    metric(out, "lima:connections", "gauge", "Connections open.", [(String::new(), connections)]);
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    metric(out, "lima:build_info", "gauge", "Version.", [(version, 1)]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = |line: &str| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok();
    if let Some(resident) = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(kibibytes) {
        let bytes = [(String::new(), resident * 1024)];
        metric(out, "process_resident_memory_bytes", "gauge", "Resident memory.", bytes);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        metric(out, "process_open_fds", "gauge", "Open file descriptors.", [(String::new(), open.count())]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::http::tenant::Quota;

    #[test]
    fn buckets_add_up_and_labels_are_escaped() {
        let mut out = Vec::new();
        let counts = [1, 0, 2].into_iter();
        histogram(&mut out, "h", "Help.", &format!("m=\"{}\"", escape("a\"b")), &[0.001, 2.0], counts, 7.5);
        let expected = "# HELP h Help.\n# TYPE h histogram\nh_bucket{m=\"a\\\"b\",le=\"0.001\"} 1\n\
                        h_bucket{m=\"a\\\"b\",le=\"2\"} 1\nh_bucket{m=\"a\\\"b\",le=\"+Inf\"} 3\n\
                        h_sum{m=\"a\\\"b\"} 7.5\nh_count{m=\"a\\\"b\"} 3\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn keys_without_a_name_are_one() {
        let tenant = |id, name: Option<&str>| {
            Arc::new(Tenant::new(id, name.map(str::to_owned), Quota::default(), Instant::now()))
        };
        let tenants = [tenant(1, None), tenant(2, Some("a")), tenant(3, None)];
        tenants[0].generated();
        tenants[2].generated();
        let mut out = Vec::new();
        keys(&mut out, &tenants);
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("lima:key_generation_tokens_total{key=\"\"} 2\n"), "{text}");
        assert!(text.contains("lima:key_generation_tokens_total{key=\"a\"} 0\n"), "{text}");
    }
}
