//! The chat page's files: types, policy, validators, and that they need no key.

use lima::http::{Auth, Limits};
use reqwest::Method;
use serde_json::Value;

use super::{Server, Setup};

/// The paths a page refers to, and those its scripts do.
async fn files(server: &Server) -> Vec<String> {
    let mut found = vec!["/".to_owned()];
    let mut at = 0;
    while at < found.len() {
        let text = server.get(&found[at]).await.text().await.unwrap();
        for part in text.split(['"', '\'']) {
            let name = part.strip_prefix("page/").or(part.strip_prefix("./"));
            let path = name.map(|name| format!("/page/{name}")).filter(|path| !found.contains(path));
            found.extend(path);
        }
        at += 1;
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_all_it_needs_are_served() {
    let server = Server::default().await;
    let files = files(&server).await;
    assert!(files.len() > 10, "{files:?}");
    for path in files {
        let response = server.get(&path).await;
        assert_eq!(response.status(), 200, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let expected = match path.rsplit_once('.') {
            None => "text/html; charset=utf-8",
            Some((_, "css")) => "text/css; charset=utf-8",
            Some((_, "js")) => "text/javascript; charset=utf-8",
            Some((_, "svg")) => "image/svg+xml",
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!(header("content-type"), expected, "{path}");
        assert_eq!(header("cache-control"), "no-cache");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");

        let tag = header("etag");
        let again = server.request(Method::GET, &path).header("if-none-match", &tag).send().await.unwrap();
        assert_eq!((again.status().as_u16(), again.headers()["etag"].to_str().unwrap()), (304, &*tag), "{path}");
        assert!(again.bytes().await.unwrap().is_empty());
        let other = server.request(Method::GET, &path).header("if-none-match", "\"other\"").send().await.unwrap();
        assert_eq!(other.status(), 200);
        let head = server.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!((head.status().as_u16(), head.headers()["content-type"].to_str().unwrap()), (200, expected));
    }
    let missing = server.get("/page/no-such-file.js").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json::<Value>().await.unwrap()["error"]["code"], "unknown_url");
    assert_eq!(server.request(Method::POST, "/").send().await.unwrap().status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_needs_no_model_and_no_key() {
    let auth = Auth::new(&["secret".into()], None).unwrap();
    let server = Server::start(Setup { auth, load: false, ..Setup::default() }).await;
    for path in files(&server).await {
        assert_eq!(server.get(&path).await.status(), 200, "{path}");
    }
    for path in ["/page/no-such-file.js", "/page/", "/page/../metrics", "//", "/metrics"] {
        assert_eq!(server.get(path).await.status(), 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_turned_off() {
    let limits = Limits { chat_page: false, ..Limits::default() };
    for (key, status) in [(None, 404), (Some("secret".to_owned()), 401)] {
        let auth = Auth::new(key.as_slice(), None).unwrap();
        let server = Server::start(Setup { auth, limits, ..Setup::default() }).await;
        assert_eq!(server.get("/").await.status(), status);
        assert_eq!(server.get("/page/main.js").await.status(), status);
    }
}
