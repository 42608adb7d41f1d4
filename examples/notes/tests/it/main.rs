//! The app as it runs: a real process, real sockets, and kill -9.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

struct App {
    child: Child,
    port: u16,
    output: Option<BufReader<ChildStdout>>,
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl App {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_notes"))
            .env("PORT", "0")
            .env("NOTES_DATA", data)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the app ended before it listened");
        }
        let address: SocketAddr =
            line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        Self { child, port: address.port(), output: Some(output) }
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<(u16, String, String)> {
        request(self.port, method, path, headers, body)
    }

    fn post(&self, text: &str) -> (u16, Value) {
        let body = json!({"text": text}).to_string();
        let (status, _, body) =
            self.request("POST", "/api/notes", "Content-Type: application/json\r\n", &body).unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }

    fn notes(&self) -> Vec<Value> {
        let (status, _, body) = self.request("GET", "/api/notes", "", "").unwrap();
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }

    fn texts(&self) -> Vec<String> {
        self.notes().iter().map(|note| note["text"].as_str().unwrap().to_owned()).collect()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

fn request(port: u16, method: &str, path: &str, headers: &str, body: &str) -> std::io::Result<(u16, String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, head.to_ascii_lowercase(), body.to_owned()))
}

#[test]
fn a_note_is_added_listed_and_deleted() {
    let data = tempfile::tempdir().unwrap();
    let app = App::start(data.path());
    assert_eq!(app.notes(), Vec::<Value>::new());
    let (status, note) = app.post("buy <milk> & \"bread\" ✓");
    assert_eq!(status, 201);
    assert_eq!(note["text"], "buy <milk> & \"bread\" ✓");
    assert_eq!(app.notes(), std::slice::from_ref(&note));
    let path = format!("/api/notes/{}", note["id"].as_str().unwrap());
    assert_eq!(app.request("DELETE", &path, "", "").unwrap().0, 204);
    assert_eq!(app.request("DELETE", &path, "", "").unwrap().0, 404);
    assert_eq!(app.notes(), Vec::<Value>::new());
}

#[test]
fn bad_requests_get_a_clear_answer() {
    let data = tempfile::tempdir().unwrap();
    let app = App::start(data.path());
    let json = "Content-Type: application/json\r\n";
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(16 * 1024 + 1));
    let huge = format!("{{\"text\":\"{}\"}}", "x".repeat(200 * 1024));
    for (method, path, headers, body, status) in [
        ("POST", "/api/notes", json, "{\"text\":\" \"}", 422),
        ("POST", "/api/notes", json, "{\"text\":7}", 422),
        ("POST", "/api/notes", json, "{}", 422),
        ("POST", "/api/notes", json, "{", 400),
        ("POST", "/api/notes", "", "{\"text\":\"x\"}", 415),
        ("POST", "/api/notes", json, &long, 413),
        ("POST", "/api/notes", json, &huge, 413),
        ("PUT", "/api/notes", json, "{}", 405),
        ("DELETE", "/api/notes/..%2f..%2fetc", "", "", 404),
        ("DELETE", "/api/notes/f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "", "", 404),
        ("GET", "/nothing", "", "", 404),
    ] {
        let (had, _, answer) = app.request(method, path, headers, body).unwrap();
        assert_eq!(had, status, "{method} {path}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].as_str().is_some_and(|error| !error.is_empty()), "{method} {path}");
    }
    assert_eq!(app.notes(), Vec::<Value>::new());
}

#[test]
fn the_page_brings_all_it_needs_and_may_run_nothing_else() {
    let data = tempfile::tempdir().unwrap();
    let app = App::start(data.path());
    let (status, head, page) = app.request("GET", "/", "", "").unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html") && head.contains("content-security-policy: default-src 'none'"));
    for name in ["/app.js", "/style.css", "/favicon.svg"] {
        assert!(page.contains(name));
        assert_eq!(app.request("GET", name, "", "").unwrap().0, 200);
    }
    assert!(
        page.contains("<label for=\"text\">") && page.contains("lang=\"en\"") && page.contains("width=device-width")
    );
    assert_eq!(app.request("GET", "/healthz", "", "").unwrap().2, "ok\n");
}

#[test]
fn it_answers_on_ipv6_and_ipv4() {
    let data = tempfile::tempdir().unwrap();
    let app = App::start(data.path());
    assert!(TcpStream::connect(("127.0.0.1", app.port)).is_ok());
    assert!(TcpStream::connect(("::1", app.port)).is_ok());
}

#[test]
fn the_caller_that_the_ingress_names_is_in_the_log() {
    let data = tempfile::tempdir().unwrap();
    let mut app = App::start(data.path());
    app.request("GET", "/api/notes", "X-Forwarded-For: 203.0.113.7\r\n", "").unwrap();
    app.request("GET", "/", "", "").unwrap();
    let mut output = app.output.take().unwrap();
    let mut lines = String::new();
    while lines.matches("request").count() < 2 {
        assert_ne!(output.read_line(&mut lines).unwrap(), 0);
    }
    assert!(lines.contains("caller=\"203.0.113.7\"") && lines.contains("path=\"/api/notes\""), "{lines}");
    assert!(lines.contains("caller=\"127.0.0.1\""), "{lines}");
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let mut app = App::start(data.path());
        let port = app.port;
        let dead = AtomicBool::new(false); // or about to be
        // Writers go on until the app dies under them, and note what was acknowledged.
        let (mut added, mut deleted) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let dead = &dead;
                    scope.spawn(move || write_until_dead(port, &format!("{round}-{writer}"), dead))
                })
                .collect();
            let deadline = Instant::now() + PATIENCE;
            while app.texts().len() < kept.len() + 10 {
                assert!(Instant::now() < deadline, "the writers make no progress");
            }
            dead.store(true, Ordering::SeqCst);
            app.child.kill().unwrap();
            app.child.wait().unwrap();
            for writer in writers {
                let (more, less) = writer.join().unwrap();
                added.extend(more);
                deleted.extend(less);
            }
        });
        kept.extend(added);
        gone.extend(deleted);
        let app = App::start(data.path());
        let texts = app.texts();
        assert!(kept.iter().all(|text| texts.contains(text)), "an acknowledged note is lost");
        assert!(gone.iter().all(|text| !texts.contains(text)), "a deleted note is back");
    }
    assert!(kept.len() >= 10 && !gone.is_empty());
}

/// Adds notes, and deletes every fourth. Returns those that must be there and those that must not.
fn write_until_dead(port: u16, name: &str, dead: &AtomicBool) -> (Vec<String>, Vec<String>) {
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for n in 0.. {
        let text = format!("{name}-{n}");
        let body = json!({"text": text}).to_string();
        let Ok((201, _, note)) = request(port, "POST", "/api/notes", "Content-Type: application/json\r\n", &body)
        else {
            assert!(dead.load(Ordering::SeqCst), "a write failed while the app was up");
            return (kept, gone);
        };
        if n % 4 != 0 {
            kept.push(text);
            continue;
        }
        let note: Value = serde_json::from_str(&note).unwrap();
        let path = format!("/api/notes/{}", note["id"].as_str().unwrap());
        // A deletion without an answer may have happened or not.
        match request(port, "DELETE", &path, "", "") {
            Ok((204, ..)) => gone.push(text),
            _ => return (kept, gone),
        }
    }
    (kept, gone)
}

#[test]
fn sigterm_ends_it_in_order() {
    let data = tempfile::tempdir().unwrap();
    let mut app = App::start(data.path());
    app.post("kept");
    // A connection that idles must not hold it up.
    let _idle = TcpStream::connect(("127.0.0.1", app.port)).unwrap();
    let start = Instant::now();
    app.signal("-TERM");
    assert!(app.child.wait().unwrap().success());
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(App::start(data.path()).texts(), ["kept"]);
}

#[test]
fn a_bad_port_and_a_volume_in_use_end_it_with_the_reason() {
    let data = tempfile::tempdir().unwrap();
    let run = |port: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_notes"))
            .env("PORT", port)
            .env("NOTES_DATA", data.path())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run("http").contains("is not a port"));
    let _app = App::start(data.path());
    assert!(run("0").contains("in use by another process"));
}
