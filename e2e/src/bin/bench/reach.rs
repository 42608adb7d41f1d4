//! Requests through the gateway to an app, against nginx that ends TLS and proxies to the same app.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, run as sh},
    instance::Instance,
};

use crate::report::{Better, Report, median};

const HOST: &str = "notes.alice.hearth.internal";
const ROUNDS: usize = 5;
const REQUESTS: u32 = 5_000;
const CONNECTIONS: u32 = 16;
/// User and system time in /proc are in ticks of 10 ms.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that processes have used.
fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS_PER_SECOND
}

/// One round of load; returns requests per second.
fn load(address: &str, arguments: &[String]) -> Result<f64> {
    let port = address.rsplit_once(':').context("an address")?.1;
    let mut h2load = Command::new("h2load");
    h2load.arg(format!("--connect-to={address}")).args(arguments).arg(format!("https://{HOST}:{port}/healthz"));
    let text = command::succeed(&mut h2load)?;
    ensure!(text.contains(" 0 failed, 0 errored"), "{text}");
    let line = text.lines().find(|line| line.starts_with("finished in")).context(text.clone())?;
    let rate = line.split(", ").nth(1).and_then(|part| part.split(' ').next()).context(line.to_owned())?;
    Ok(rate.parse()?)
}

/// One round over connections that are kept, to the example at a gateway; requests per second.
pub(crate) fn load_of_notes(gateway: &str) -> Result<f64> {
    let (requests, connections) = (REQUESTS.to_string(), CONNECTIONS.to_string());
    load(gateway, &["-n", &requests, "-c", &connections, "-m", "4", "-t", "1"].map(str::to_owned))
}

/// The program: of this machine, or as `scripts/deps.sh bench` unpacks it, so that no web server is started here.
fn nginx() -> Option<String> {
    let unpacked = hearth_e2e::instance::binary().parent()?.parent()?.join("debian/nginx/usr/sbin/nginx");
    let known = ["nginx".to_owned(), "/usr/sbin/nginx".to_owned(), unpacked.display().to_string()];
    known.into_iter().find(|program| sh(program, ["-v"]).is_ok())
}

/// nginx in the foreground, ended with the benchmark.
struct Nginx {
    child: Child,
    _folder: tempfile::TempDir,
    address: String,
}

impl Nginx {
    fn start(instance: &Instance, backend: &str) -> Result<Option<Self>> {
        let Some(program) = nginx() else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let path = folder.path().display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let subject = format!("/CN={HOST}");
        sh(
            "openssl",
            [
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
                "-subj",
                &subject,
                "-keyout",
                &format!("{path}/key.pem"),
                "-out",
                &format!("{path}/cert.pem"),
            ],
        )?;
        let config = format!(
            "daemon off; worker_processes 2; pid {path}/pid; error_log {path}/error.log;
             events {{ worker_connections 1024; }}
             http {{ access_log off; client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c; uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;
               upstream app {{ server {backend}; keepalive 32; }}
               server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {path}/cert.pem; ssl_certificate_key {path}/key.pem; keepalive_requests 1000000;
                 location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host;
                   proxy_set_header X-Forwarded-For $remote_addr; }} }} }}"
        );
        fs::write(folder.path().join("nginx.conf"), config)?;
        let mut nginx = instance.program(&program);
        let child = nginx
            .args(["-p", &path, "-e", &format!("{path}/error.log"), "-c", &format!("{path}/nginx.conf")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let address = format!("127.0.0.1:{port}");
        hearth_e2e::eventually("nginx listens", std::time::Duration::from_secs(10), || {
            Ok(std::net::TcpStream::connect(&address)?)
        })?;
        Ok(Some(Self { child, _folder: folder, address }))
    }

    /// The master and its workers.
    fn pids(&self) -> Result<Vec<u32>> {
        let own = self.child.id();
        let children = sh("pgrep", ["-P", &own.to_string()])?;
        Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([own]).collect())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM lets the master end its workers.
        let _ = sh("kill", [&self.child.id().to_string()]);
        let _ = self.child.wait();
    }
}

fn case(
    report: &mut Report,
    instance: &Instance,
    nginx: Option<&Nginx>,
    name: &str,
    arguments: &[String],
) -> Result<()> {
    let gateway = instance.address("gateway")?;
    let (mut ours, mut theirs, mut our_cost, mut their_cost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let requests = f64::from(REQUESTS);
    for _ in 0..ROUNDS {
        let pids = [instance.pids(" server "), instance.pids(" agent ")].concat();
        let before = cpu(&pids);
        ours.push(load(&gateway, arguments)?);
        our_cost.push(requests / (cpu(&pids) - before));
        if let Some(nginx) = nginx {
            let pids = nginx.pids()?;
            let before = cpu(&pids);
            theirs.push(load(&nginx.address, arguments)?);
            their_cost.push(requests / (cpu(&pids) - before));
        }
    }
    let peer = nginx.map(|_| ("nginx, TLS proxy", median(&mut theirs)));
    report.figure(name, median(&mut ours), "requests/s", Better::Higher, peer)?;
    let peer = nginx.map(|_| ("nginx, TLS proxy", median(&mut their_cost)));
    report.figure(&format!("{name}/cpu"), median(&mut our_cost), "requests/CPU-s", Better::Higher, peer)
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let instance = Instance::up("notes")?;
    let pod = &instance.list("pods", "alice")?[0];
    let backend = format!("{}:8080", pod["status"]["podIP"].as_str().context("an address")?);
    let nginx = Nginx::start(&instance, &backend)?;
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (requests, connections) = (REQUESTS.to_string(), CONNECTIONS.to_string());
    let h2 = text(&["-n", &requests, "-c", &connections, "-m", "4", "-t", "1"]);
    let h1 = text(&["--h1", "-n", &requests, "-c", &connections, "-t", "1"]);
    case(report, &instance, nginx.as_ref(), "https/keepalive", &h2)?;
    case(report, &instance, nginx.as_ref(), "https/keepalive-h1", &h1)
}
