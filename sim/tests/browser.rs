//! The report in a real browser: headless Chromium shows it without a word on its console, at the width of a desk and of a
//! phone, in light and dark. Where there is no Chromium the test says so and passes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A browser, if the machine has one.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).collect::<Vec<_>>();
    let all = folders
        .iter()
        .flat_map(|folder| names.map(|name| folder.join(name)));
    all.into_iter().find(|path| path.is_file())
}

fn report(out: &Path) {
    let scenario = out.with_file_name("case.toml");
    std::fs::write(
        &scenario,
        "duration = \"120s\"\nclient = [{ ports = 400, arrivals = { constant = { rate = 10 } } }]\n\
         rollout = { scripted = { at = \"50s\", old_die_at = \"70s\" } }\n",
    )
    .unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_sim"))
        .arg("report")
        .arg(&scenario)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Runs the browser on a page; what it printed on standard output and standard error.
fn shown(browser: &Path, home: &Path, page: &Path, flags: &[&str]) -> (String, String) {
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--hide-scrollbars",
        ])
        .arg(format!("--user-data-dir={}", home.display()))
        .args(flags)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_report_is_shown_without_a_complaint() {
    let Some(browser) = browser() else {
        println!(
            "skipped: no chromium on this machine (apt-get install chromium); the page's bytes are tested elsewhere"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("report.html");
    report(&page);
    // A page that complains is noticed: else silence would prove nothing.
    let loud = dir.path().join("loud.html");
    std::fs::write(&loud, "<script>console.error('heard')</script>").unwrap();
    let (_, said) = shown(&browser, dir.path(), &loud, &["--dump-dom"]);
    assert!(said.contains("CONSOLE") && said.contains("heard"), "{said}");

    for (name, flags) in [
        ("desk", vec!["--window-size=1280,1000"]),
        ("phone", vec!["--window-size=500,900"]),
        (
            "dark",
            vec![
                "--window-size=1280,1000",
                "--blink-settings=preferredColorScheme=0",
            ],
        ),
    ] {
        let picture = dir.path().join(format!("{name}.png"));
        let shot = format!("--screenshot={}", picture.display());
        let mut all = flags.clone();
        all.push(&shot);
        let (_, said) = shown(&browser, dir.path(), &page, &all);
        assert!(!said.contains("CONSOLE"), "{name}: {said}");
        let bytes = std::fs::read(&picture).unwrap();
        assert!(
            bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000,
            "{name}: {} bytes",
            bytes.len()
        );
    }

    // Nothing sticks out: the page itself is no wider than the window. The question is asked by a script in a copy.
    let asked = dir.path().join("asked.html");
    let text = std::fs::read_to_string(&page).unwrap();
    let script = "<script>document.title = 'wide ' + (document.documentElement.scrollWidth - innerWidth)</script></body>";
    std::fs::write(&asked, text.replace("</body>", script)).unwrap();
    for size in ["--window-size=1280,1000", "--window-size=500,900"] {
        let (dom, _) = shown(&browser, dir.path(), &asked, &[size, "--dump-dom"]);
        let title = dom
            .split("<title>wide ")
            .nth(1)
            .and_then(|rest| rest.split('<').next());
        let over = title.and_then(|title| title.parse::<i64>().ok());
        assert!(over.is_some_and(|over| over <= 0), "{size}: {over:?}");
    }
}
