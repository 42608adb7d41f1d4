//! What others run in the place of gateway and ingress: nginx ends TLS and proxies to the app; rathole carries connections to the home through
//! a tunnel of TLS, at whose end nginx does the same.

use std::{
    fs,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use hearth_e2e::{command::run as sh, free_port, instance::Instance};

/// A program that was installed, in one of the places where it may be.
fn installed(names: &[String], ask: &str) -> Option<String> {
    names.iter().find(|program| sh(program, [ask]).is_ok()).cloned()
}

/// The program: of this machine, or as `scripts/deps.sh bench` unpacks it, so that no web server is started here.
fn nginx() -> Option<String> {
    let unpacked = hearth_e2e::instance::binary().parent()?.parent()?.join("debian/nginx/usr/sbin/nginx");
    installed(&["nginx".to_owned(), "/usr/sbin/nginx".to_owned(), unpacked.display().to_string()], "-v")
}

/// `cargo install rathole`: Debian does not have it.
fn rathole() -> Option<String> {
    installed(&["rathole".to_owned()], "--version")
}

/// A self-signed certificate for a name, `NAME.pem` and `NAME.key` in a folder.
fn certificate(path: &str, file: &str, name: &str) -> Result<()> {
    let (subject, alternative) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
    let (key, pem) = (format!("{path}/{file}.key"), format!("{path}/{file}.pem"));
    let line = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
    let rest = ["-subj", &subject, "-addext", &alternative, "-keyout", &key, "-out", &pem];
    sh("openssl", line.into_iter().chain(rest)).map(drop)
}

/// A process of a peer; ended with the benchmark.
struct Process(Child);

impl Process {
    fn start(instance: &Instance, program: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = instance.program(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("cannot start {program}"))?))
    }

    /// It and its children.
    fn pids(&self) -> Vec<u32> {
        let own = self.0.id();
        let children = sh("pgrep", ["-P", &own.to_string()]).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([own]).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM lets a master end its workers.
        let _ = sh("kill", [&self.0.id().to_string()]);
        let _ = self.0.wait();
    }
}

/// nginx in the foreground of an instance's network.
pub(crate) struct Nginx {
    process: Process,
    _folder: tempfile::TempDir,
    pub(crate) address: String,
}

impl Nginx {
    /// Proxies to a backend, and ends TLS for a host; `None` where it is not installed.
    pub(crate) fn start(instance: &Instance, host: &str, backend: &str) -> Result<Option<Self>> {
        let Some(program) = nginx() else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let path = folder.path().display().to_string();
        let port = free_port()?;
        certificate(&path, "own", host)?;
        let config = format!(
            "daemon off; worker_processes 2; pid {path}/pid; error_log {path}/error.log;
             events {{ worker_connections 1024; }}
             http {{ access_log off; client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c; uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;
               upstream app {{ server {backend}; keepalive 32; }}
               server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {path}/own.pem; ssl_certificate_key {path}/own.key; keepalive_requests 1000000;
                 location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host; proxy_max_temp_file_size 0;
                   proxy_set_header X-Forwarded-For $remote_addr; }} }} }}"
        );
        fs::write(folder.path().join("nginx.conf"), config)?;
        let arguments = ["-p", &path, "-e", &format!("{path}/error.log"), "-c", &format!("{path}/nginx.conf")];
        let process = Process::start(instance, &program, &arguments)?;
        // It writes this once it listens, wherever that is.
        hearth_e2e::eventually("nginx listens", Duration::from_secs(10), || Ok(fs::read(folder.path().join("pid"))?))?;
        Ok(Some(Self { process, _folder: folder, address: format!("127.0.0.1:{port}") }))
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.process.pids()
    }
}

/// Both ends of rathole.
pub(crate) struct Rathole {
    server: Process,
    client: Process,
    _folder: tempfile::TempDir,
    /// Where users connect to.
    pub(crate) address: String,
}

impl Rathole {
    /// A server at an address of `region`'s network, and a client beside `target` in `home`'s; `None` where it is not installed.
    pub(crate) fn start(region: &Instance, ip: &str, home: &Instance, target: &str) -> Result<Option<Self>> {
        let Some(program) = rathole() else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let path = folder.path().display().to_string();
        let (control, service) = (free_port()?, free_port()?);
        certificate(&path, "own", "localhost")?;
        let (pem, key, pfx) = (format!("{path}/own.pem"), format!("{path}/own.key"), format!("{path}/own.pfx"));
        sh("openssl", ["pkcs12", "-export", "-passout", "pass:bench", "-in", &pem, "-inkey", &key, "-out", &pfx])?;
        let server = format!(
            "[server]\nbind_addr = \"{ip}:{control}\"\ndefault_token = \"bench\"\n[server.transport]\ntype = \"tls\"\n\
             [server.transport.tls]\npkcs12 = \"{pfx}\"\npkcs12_password = \"bench\"\n\
             [server.services.app]\nbind_addr = \"{ip}:{service}\"\n"
        );
        let client = format!(
            "[client]\nremote_addr = \"{ip}:{control}\"\ndefault_token = \"bench\"\n[client.transport]\ntype = \"tls\"\n\
             [client.transport.tls]\ntrusted_root = \"{pem}\"\nhostname = \"localhost\"\n\
             [client.services.app]\nlocal_addr = \"{target}\"\n"
        );
        let (server_file, client_file) = (format!("{path}/server.toml"), format!("{path}/client.toml"));
        fs::write(&server_file, server)?;
        fs::write(&client_file, client)?;
        let server = Process::start(region, &program, &["--server", &server_file])?;
        let client = Process::start(home, &program, &["--client", &client_file])?;
        Ok(Some(Self { server, client, _folder: folder, address: format!("{ip}:{service}") }))
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        [self.server.pids(), self.client.pids()].concat()
    }
}
