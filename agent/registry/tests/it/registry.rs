//! Debian's docker-registry as a process of its own, on a port that the kernel chose.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// How long the registry may take to listen.
const START: Duration = Duration::from_secs(30);
/// Lines of the registry's log that may wait to be looked at.
const LINES: usize = 64;

/// A running registry; dropped, also by a panic, it ends.
pub(crate) struct Registry {
    child: Child,
    /// `127.0.0.1:port`.
    pub(crate) host: String,
}

impl Registry {
    /// `auth` is the registry's own `auth:` section, or empty.
    pub(crate) fn start(directory: &Path, auth: &str) -> Self {
        let config = directory.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: text\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n  secret: test\n{auth}",
            directory.join("storage").display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new(program())
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed by scripts/deps.sh test");
        let stderr = child.stderr.take().unwrap();
        let mut registry = Self { child, host: String::new() };
        let (sender, lines) = sync_channel(LINES);
        // Goes on reading, so that the registry never waits for its log; ends with the registry.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.try_send(line);
            }
        });
        let mut log = String::new();
        while registry.host.is_empty() {
            let line = lines.recv_timeout(START).unwrap_or_else(|_| panic!("docker-registry does not listen:\n{log}"));
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                registry.host = format!("127.0.0.1:{port}");
            }
            log = format!("{log}{line}\n");
        }
        registry
    }

    /// Pushes what `layout` holds under the tag `1`, with arguments of skopeo's.
    pub(crate) fn push(&self, layout: &Path, name: &str, arguments: &[&str]) {
        self.copy(&format!("oci:{}:1", layout.display()), name, arguments);
    }

    /// Pushes what skopeo finds at `from`.
    pub(crate) fn copy(&self, from: &str, name: &str, arguments: &[&str]) {
        let to = format!("docker://{}/{name}", self.host);
        let fixed = ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--retry-times=2"];
        let done =
            Command::new("skopeo").args([&fixed[..], arguments, &[from, &to]].concat()).output().expect("skopeo");
        assert!(done.status.success(), "skopeo: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// The one that is installed, or that scripts/deps.sh unpacked into the target directory.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let unpacked = |folder: &Path| folder.join("debian/docker-registry/usr/bin/docker-registry");
    own.ancestors().skip(1).take(3).map(unpacked).find(|path| path.exists()).unwrap_or_else(|| "docker-registry".into())
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
