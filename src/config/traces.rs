//! Where spans go: `--otlp-traces-endpoint`, or OpenTelemetry's own variables.

use super::ConfigError;

const FLAG: &str = "--otlp-traces-endpoint";
/// Used as it is.
const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// What all signals have in common; that of spans is below it.
const COMMON: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PATH: &str = "/v1/traces";

/// The URL to post spans to, if they go anywhere. The flag goes before the variables, which `variable` reads.
///
/// # Errors
/// One line that names the flag or the variable.
pub(super) fn endpoint(
    flag: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, ConfigError> {
    let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let is = |name: &str, value: &str| set(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    let found = match flag {
        Some(url) => Some((FLAG, with_path(url))),
        None if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") => None,
        None => match (set(TRACES), set(COMMON)) {
            (Some(url), _) => Some((TRACES, url)),
            (None, Some(url)) => Some((COMMON, format!("{}{PATH}", url.trim_end_matches('/')))),
            (None, None) => None,
        },
    };
    let Some((name, url)) = found else { return Ok(None) };
    check(name, &url)?;
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        match set(name) {
            Some(protocol) if protocol != "http/protobuf" => {
                let message = format!("{name} is '{protocol}', but spans are sent as http/protobuf only");
                return Err(ConfigError(message));
            }
            Some(_) => break,
            None => {}
        }
    }
    Ok(Some(url))
}

/// A URL without a path is a collector's, which takes spans at the usual one.
fn with_path(url: &str) -> String {
    let url = url.trim();
    let host = url.split_once("://").map_or("", |(_, rest)| rest);
    match host.trim_end_matches('/').contains('/') {
        true => url.to_owned(),
        false => format!("{}{PATH}", url.trim_end_matches('/')),
    }
}

fn check(name: &str, url: &str) -> Result<(), ConfigError> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
    match host {
        // URLs are printed.
        Some(host) if host.contains('@') => {
            Err(ConfigError(format!("{name} must not hold a password; give headers in OTEL_EXPORTER_OTLP_HEADERS")))
        }
        Some(host) if !host.is_empty() && url.bytes().all(|b| b.is_ascii_graphic()) => Ok(()),
        _ => Err(ConfigError(format!("{name} '{url}' is not a URL such as http://127.0.0.1:4318"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let read = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        endpoint(flag, read).map_err(|e| e.0)
    }

    fn url(text: &str) -> Result<Option<String>, String> {
        Ok(Some(text.to_owned()))
    }

    #[test]
    fn the_flag_goes_before_the_variables() {
        assert_eq!(of(None, &[]), Ok(None));
        assert_eq!(of(None, &[(COMMON, ""), (TRACES, " ")]), Ok(None));
        assert_eq!(of(None, &[(COMMON, "http://c:4318/")]), url("http://c:4318/v1/traces"));
        assert_eq!(of(None, &[(COMMON, "http://c/otlp")]), url("http://c/otlp/v1/traces"));
        assert_eq!(of(None, &[(COMMON, "http://c"), (TRACES, "https://t/x")]), url("https://t/x"));
        assert_eq!(of(Some("http://f:4318"), &[(TRACES, "http://t/x")]), url("http://f:4318/v1/traces"));
        assert_eq!(of(Some("http://f:4318/"), &[]), url("http://f:4318/v1/traces"));
        assert_eq!(of(Some("https://f/api/otel/v1/traces"), &[]), url("https://f/api/otel/v1/traces"));
    }

    #[test]
    fn it_can_be_turned_off() {
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(of(None, &[(COMMON, "http://c"), off]), Ok(None));
            assert_eq!(of(Some("http://f/x"), &[off]), url("http://f/x"));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(of(Some("c:4318"), &[]).unwrap_err().starts_with("--otlp-traces-endpoint 'c:4318"));
        assert!(of(Some("http://"), &[]).unwrap_err().contains("is not a URL"));
        assert!(of(None, &[(TRACES, "grpc://c")]).unwrap_err().starts_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"));
        let error = of(Some("https://me:secret@c"), &[]).unwrap_err();
        assert!(error.contains("OTEL_EXPORTER_OTLP_HEADERS") && !error.contains("secret"), "{error}");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert!(
            of(None, &[(COMMON, "http://c"), grpc]).unwrap_err().starts_with("OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'")
        );
        assert_eq!(of(None, &[grpc]), Ok(None));
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert_eq!(of(Some("http://c/x"), &[grpc, traces]), url("http://c/x"));
    }
}
