//! The chat page in a browser, against the real server.

use std::path::Path;
use std::process::Command;

use crate::support::goldens;

/// All of it is checked by `scripts/page-test`.
#[test]
fn the_chat_page_works_in_a_browser() {
    let Some(browser) = std::env::var_os("LIMA_CHROMIUM") else {
        println!("skipped: LIMA_CHROMIUM does not name Chromium");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/page-test");
    let mut command = Command::new("python3");
    command.arg(script).args(["--lima", env!("CARGO_BIN_EXE_lima"), "--model"]).arg(goldens::default_model());
    let output = command.env("LIMA_CHROMIUM", browser).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("all is well"), "{printed}\n{errors}");
}
