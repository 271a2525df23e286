//! `GET /`: the chat page. Its files are part of the binary, hold no data, and need no key; the page asks for one
//! and sends it with its requests.

use std::sync::LazyLock;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::{ApiError, quote};

/// Scripts and styles from here, requests to here, and nothing else: an answer that is markup in spite of all could
/// neither run nor load nor send anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($( $path:literal $type:ident $file:literal ),* $(,)?) => {
        &[$( File { path: $path, content_type: $type, text: include_str!(concat!("page/", $file)) } ),*]
    };
}

const FILES: &[File] = files![
    "/" HTML "index.html",
    "/page/icon.svg" SVG "icon.svg",
    "/page/style.css" CSS "style.css",
    "/page/turns.css" CSS "turns.css",
    "/page/theme.js" JS "theme.js",
    "/page/main.js" JS "main.js",
    "/page/answer.js" JS "answer.js",
    "/page/api.js" JS "api.js",
    "/page/chats.js" JS "chats.js",
    "/page/dom.js" JS "dom.js",
    "/page/inline.js" JS "inline.js",
    "/page/load.js" JS "load.js",
    "/page/markdown.js" JS "markdown.js",
    "/page/settings.js" JS "settings.js",
    "/page/shell.js" JS "shell.js",
    "/page/storage.js" JS "storage.js",
    "/page/turns.js" JS "turns.js",
];

/// Strong validators, one a file, in the files' order: digests of the content.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| FILES.iter().map(|file| tag(file.text)).collect());

fn tag(text: &str) -> HeaderValue {
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest[..16].iter().map(|b| format!("{b:02x}")).collect();
    HeaderValue::try_from(format!("\"{hex}\"")).expect("hexadecimal digits in quotes")
}

/// Whether the page has a file of this path.
pub fn has(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// A file of the page, or 304 where the browser has it already.
pub async fn file(method: Method, uri: Uri, request: Request) -> Response {
    let Some(at) = FILES.iter().position(|file| file.path == uri.path()) else {
        return ApiError::NotFound { method: quote(method.as_str()), path: quote(uri.path()) }.into_response();
    };
    let (file, tag) = (&FILES[at], &TAGS[at]);
    let headers = [
        (header::ETAG, tag.clone()),
        // Kept, but asked for each time: another version of the server has another page.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    if is_known(request.headers(), tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    (headers, [content_type], file.text).into_response()
}

/// Whether `if-none-match` names this tag, weakly or not, or any.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every file that another refers to is there, and every file there is referred to.
    #[test]
    fn no_file_is_missing_or_left_over() {
        let mut used = vec!["/".to_owned()];
        for file in FILES {
            for part in file.text.split(['"', '\'']) {
                match (part.strip_prefix("page/"), part.strip_prefix("./")) {
                    (Some(name), _) if file.content_type == HTML => used.push(format!("/page/{name}")),
                    (_, Some(name)) if file.content_type == JS => used.push(format!("/page/{name}")),
                    _ => {}
                }
            }
        }
        for path in &used {
            assert!(has(path), "{path}");
        }
        for file in FILES {
            assert!(used.iter().any(|path| path == file.path), "nothing uses {}", file.path);
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/page");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), FILES.len());
    }

    /// What would make text of a model's into markup, or needs a looser policy, is not used.
    #[test]
    fn text_stays_text() {
        for file in FILES {
            for word in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "srcdoc"]
            {
                assert!(!file.text.contains(word), "{}: {word}", file.path);
            }
            if file.content_type == HTML {
                assert!(!file.text.contains(" style=") && !file.text.contains(" onclick="), "{}", file.path);
            }
            let foreign = file.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("src=\"http") && !foreign.contains("href=\"http"), "{}", file.path);
        }
    }

    #[test]
    fn tags_are_matched_as_lists_and_weakly() {
        let tag = tag("a");
        let text = tag.to_str().unwrap();
        let headers =
            |value: &str| HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())]);
        for known in [text.to_owned(), format!("W/{text}"), format!("\"x\", {text}"), "*".into()] {
            assert!(is_known(&headers(&known), &tag), "{known}");
        }
        assert!(!is_known(&headers("\"x\", W/\"y\""), &tag) && !is_known(&HeaderMap::new(), &tag));
    }
}
