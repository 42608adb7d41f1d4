//! Certificates of a public authority, ordered of real ones: Pebble (Let's Encrypt's own for tests) and Caddy's.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, Running, run},
    eventually, free_port,
    instance::Instance,
    netns::Netns,
};
use serde_json::{Value, json};

const HOST: &str = "web.alice.hearth.internal";

/// An app with one page, and the instance that serves it.
pub(crate) fn serve(instance: &Instance) -> Result<()> {
    instance.import_busybox()?;
    instance.apply(
        "
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: web}
spec:
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'mkdir -p /w; echo page > /w/index.html; exec httpd -f -p 8080 -h /w']
    ports: [{name: http, containerPort: 8080}]
  ingress: {port: http}
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: web, namespace: alice}
spec: {app: web}
",
    )?;
    instance.wait_ready("web", "alice")
}

/// A root, and a key and a certificate under it for an authority's own door: `door.key`, `door.pem`. Returns the root's file.
fn door_of(folder: &Path) -> Result<PathBuf> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "the door's root");
    let root = params.self_signed(&root_key)?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let door = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(params, root_key))?;
    std::fs::write(folder.join("door.key"), key.serialize_pem())?;
    std::fs::write(folder.join("door.pem"), door.pem())?;
    let path = folder.join("door-root.pem");
    std::fs::write(&path, root.pem())?;
    Ok(path)
}

/// A running Pebble, which sees names by a name server's word.
pub(crate) struct Pebble {
    folder: tempfile::TempDir,
    config: Value,
    pub(crate) door: PathBuf,
    dns: String,
    process: Option<Running>,
}

impl Pebble {
    const KID: &str = "hearth";
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

    /// Its certificates are valid for so many seconds, and its accounts belong to external ones.
    pub(crate) fn start(dns: &str, valid_seconds: u64) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let door = door_of(folder.path())?;
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{}", free_port()?),
            "managementListenAddress": format!("127.0.0.1:{}", free_port()?),
            "certificate": folder.path().join("door.pem"), "privateKey": folder.path().join("door.key"),
            "httpPort": 5002, "tlsPort": 5001, "ocspResponderURL": "",
            "externalAccountBindingRequired": true, "externalAccountMACKeys": {Self::KID: Self::KEY},
            "certificateValidityPeriod": valid_seconds,
        }});
        let mut pebble = Self { folder, config, door, dns: dns.to_owned(), process: None };
        pebble.run()?;
        Ok(pebble)
    }

    fn run(&mut self) -> Result<()> {
        let config = self.folder.path().join("pebble.json");
        std::fs::write(&config, self.config.to_string())?;
        let mut command = Command::new("pebble");
        command.arg("-config").arg(config).args(["-strict", "-dnsserver", &self.dns]).env("PEBBLE_VA_NOSLEEP", "1");
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(Running(command.spawn().context("pebble; `scripts/deps.sh test` installs it")?));
        eventually("Pebble answers", command::LIMIT, || self.fetch("listenAddress", "/dir")).map(drop)
    }

    fn stop(&mut self) -> Result<()> {
        self.process.take().context("it runs")?.stop()
    }

    fn fetch(&self, which: &str, path: &str) -> Result<String> {
        let address = self.config["pebble"][which].as_str().context("an address")?;
        let cacert = self.door.display().to_string();
        run("curl", ["-sS", "--fail", "--max-time", "5", "--cacert", &cacert, &format!("https://{address}{path}")])
    }

    /// The words of `hearth region acme` by which it is used at a directory: its own, or that of who stands before it.
    pub(crate) fn account(&self, instance: &Instance, directory: &str) -> Result<String> {
        let key = instance.path().join("eab.key");
        std::fs::write(&key, Self::KEY)?;
        let (root, kid) = (self.door.display(), Self::KID);
        Ok(format!(
            "--directory {directory} --accept-terms --roots {root} --eab-kid {kid} --eab-key-file {}",
            key.display()
        ))
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://{}/dir", self.config["pebble"]["listenAddress"].as_str().unwrap_or_default())
    }

    /// What its directory has.
    pub(crate) fn read_directory(&self) -> Result<String> {
        self.fetch("listenAddress", "/dir")
    }

    /// The root under which it issues, as a file. It has another after each start.
    pub(crate) fn root(&self) -> Result<PathBuf> {
        let path = self.folder.path().join("root.pem");
        std::fs::write(&path, self.fetch("managementListenAddress", "/roots/0")?)?;
        Ok(path)
    }
}

impl Drop for Pebble {
    #[expect(clippy::print_stderr, reason = "a test's, which its runner shows where it failed")]
    fn drop(&mut self) {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("--- pebble\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
}

/// curl through the gateway, trusting one root alone; the chain's leaf in PEM is behind the page.
fn page(instance: &Instance, root: &Path) -> Result<String> {
    let gateway = instance.address("gateway")?;
    let (ip, port) = gateway.rsplit_once(':').context("an address")?;
    let mut curl = instance.program("curl");
    curl.args([
        "-sS",
        "--fail",
        "--max-time",
        "10",
        "-w",
        "%{certs}",
        "--resolve",
        &format!("{HOST}:{port}:{ip}"),
        "--cacert",
    ])
    .arg(root)
    .arg(format!("https://{HOST}:{port}/"));
    let text = command::succeed(&mut curl)?;
    ensure!(text.starts_with("page\n"), "{text}");
    let leaf = text.split_once("-----BEGIN CERTIFICATE-----").and_then(|(_, rest)| rest.split_once("-----END"));
    leaf.map(|(leaf, _)| leaf.to_owned()).with_context(|| format!("no certificate: {text}"))
}

fn kdig(instance: &Instance, name: &str, kind: &str) -> Result<String> {
    let dns = instance.address("dns")?;
    let (ip, port) = dns.rsplit_once(':').context("an address")?;
    let mut dig = instance.program("kdig");
    command::succeed(dig.args([&format!("@{ip}"), "-p", port, "+short", name, kind]))
}

fn certificate(instance: &Instance) -> Result<Value> {
    Ok(instance.get("certificate", "nas", "alice")?["status"].take())
}

#[test]
fn a_device_serves_a_certificate_of_an_authority_renews_it_and_keeps_it_while_the_authority_is_down() -> Result<()> {
    let instance = Instance::up("none")?;
    serve(&instance)?;
    let mut pebble = Pebble::start(&instance.address("dns")?, 16)?;
    let order = |words: &str| format!("region acme --contact ops@hearth.internal --caa-issuer pebble.example {words}");
    let without = format!("--directory {} --roots {}", pebble.directory(), pebble.door.display());
    ensure!(instance.refused(&order(&without))?.contains("--accept-terms"), "nobody agrees for the operator");
    instance.run(&order(&format!("{without} --accept-terms")))?;
    instance.eventually("it is told that an external account is needed", || {
        let events = instance.run("get events -n kube-system -o json")?;
        ensure!(events.contains("AccountRefused") && events.contains("--eab-kid"), "{events}");
        Ok(())
    })?;
    let shown = instance.run(&order(&pebble.account(&instance, &pebble.directory())?))?;
    ensure!(!shown.contains(Pebble::KEY), "{shown}");
    ensure!(!instance.run("get secret region-acme -n kube-system -o yaml")?.contains(Pebble::KEY), "it is sealed");
    let root = pebble.root()?;
    let first = instance.eventually("the authority's certificate serves", || page(&instance, &root))?;
    let status = certificate(&instance)?;
    ensure!(status["issued"][0]["spki"].is_string() && status.get("request").is_none(), "{status}");
    let caa = kdig(&instance, "hearth.internal", "CAA")?;
    ensure!(caa.contains("pebble.example; accounturi=https://") && caa.contains("validationmethods=dns-01"), "{caa}");
    let names = instance.run("get certificates -n alice -o wide")?;
    ensure!(names.contains("*.lan.alice.hearth.internal") && names.contains("*.alice.hearth.internal"), "{names}");
    ensure!(kdig(&instance, "_acme-challenge.alice.hearth.internal", "TXT")?.is_empty(), "no proof outlives its order");
    // It is renewed by itself, with another key, and is never away.
    instance.eventually("it is renewed", || {
        let now = page(&instance, &root)?;
        ensure!(now != first);
        Ok(())
    })?;
    let issued = certificate(&instance)?["issued"].take();
    ensure!(issued[0]["spki"] != issued[1]["spki"] && issued[0]["renewal"] == true, "{issued}");
    let second = page(&instance, &root)?;
    // The authority goes: what there is serves on, and it is said why no other comes.
    pebble.stop()?;
    instance.eventually("it is told that the authority is away", || {
        let status = certificate(&instance)?;
        ensure!(status["failures"].as_u64() > Some(0), "{status}");
        Ok(())
    })?;
    ensure!(page(&instance, &root)? == second, "the certificate in use stays in use");
    let condition = instance.condition("certificate", "nas", "alice", "Issuing")?;
    ensure!(condition["reason"] == "AuthorityUnreachable", "{condition}");
    // Once it has expired, the region's own serves; and an authority that forgot the account gets another.
    instance.eventually("the region's own serves", || page(&instance, &instance.path().join("ca.pem")))?;
    pebble.run()?;
    let root = pebble.root()?;
    instance.eventually("the authority's serves again", || page(&instance, &root))?;
    instance.run("region acme --off")?;
    ensure!(kdig(&instance, "hearth.internal", "CAA")?.is_empty(), "anybody may issue again");
    Ok(())
}

/// Caddy, with the `Caddyfile` of a folder.
pub(crate) fn start_caddy(folder: &Path) -> Result<Running> {
    let mut command = Command::new(caddy());
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(folder.join("Caddyfile"));
    Running::quiet(command.env("HOME", folder))
}

/// The program: installed, or unpacked where `scripts/deps.sh` puts it.
fn caddy() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let unpacked = target.join("debian/caddy/usr/bin/caddy");
    if unpacked.is_file() { unpacked } else { "caddy".into() }
}

#[test]
fn caddys_authority_issues_for_names_that_it_sees_in_the_regions_dns() -> Result<()> {
    let netns = Netns::new("acme")?;
    let instance = Instance::empty()?.in_netns(netns.name());
    instance.start("none")?;
    serve(&instance)?;
    // Caddy asks the system's resolver: a resolv.conf of its own, and what it asks comes to the region.
    let dns = instance.address("dns")?;
    let port = dns.rsplit_once(':').context("an address")?.1;
    netns.nft(&format!(
        "table ip names {{\nchain out {{\ntype nat hook output priority -100;\nip daddr 127.0.0.1 udp dport 53 redirect to :{port}\n\
         ip daddr 127.0.0.1 tcp dport 53 redirect to :{port}\n}}\n}}\n"
    ))?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("resolv.conf"), "nameserver 127.0.0.1\n")?;
    std::fs::write(
        path("Caddyfile"),
        format!(
            "{{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n\tstorage file_system {}\n}}\nhttps://localhost:9443 {{\n\ttls internal\n\tacme_server\n}}\n",
            path("data")
        ),
    )?;
    let mut command = netns.program("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" run --adapter caddyfile --config \"$3\"",
        "sh",
    ]);
    command
        .arg(path("resolv.conf"))
        .arg(caddy())
        .arg(path("Caddyfile"))
        .env("GODEBUG", "netdns=go")
        .env("HOME", folder.path());
    let _caddy = Running::quiet(&mut command)?;
    let root = folder.path().join("data/pki/authorities/local/root.crt");
    let directory = "https://localhost:9443/acme/local/directory";
    instance.eventually("Caddy answers", || {
        command::succeed(netns.program("curl").args(["-sS", "--fail", "--cacert"]).arg(&root).arg(directory))
    })?;
    instance.run(&format!("region acme --directory {directory} --accept-terms --roots {}", root.display()))?;
    instance.eventually("Caddy's certificate serves", || page(&instance, &root))?;
    let status = certificate(&instance)?;
    ensure!(status["issuer"] == directory && status["renewalTime"].is_string(), "{status}");
    Ok(())
}
