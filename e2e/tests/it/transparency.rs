//! Logs of Certificate Transparency: static ones as files behind Debian's Caddy, and one of RFC 6962, which this test answers for.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_e2e::{
    command::{self, Running, run},
    eventually, free_port,
    instance::Instance,
};
use ring::{
    digest::{Context as Sha256, SHA256},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use crate::acme::{Pebble, serve, start_caddy};

type Hash = [u8; 32];

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Sha256::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("32 bytes")
}

/// `MTH` (RFC 6962 section 2.1).
fn root(hashes: &[Hash]) -> Hash {
    match hashes.len() {
        0 => sha256(&[]),
        1 => hashes[0],
        many => {
            let half = 1 << (many - 1).ilog2();
            sha256(&[&[1], &root(&hashes[..half]), &root(&hashes[half..])])
        }
    }
}

/// `SUBPROOF` (RFC 6962 section 2.1.2).
fn proof(from: usize, hashes: &[Hash], outermost: bool) -> Vec<Hash> {
    if from == hashes.len() {
        return if outermost { Vec::new() } else { vec![root(hashes)] };
    }
    let half = 1 << (hashes.len() - 1).ilog2();
    let (mut path, other) = if from <= half {
        (proof(from, &hashes[..half], outermost), root(&hashes[half..]))
    } else {
        (proof(from - half, &hashes[half..], false), root(&hashes[..half]))
    };
    path.push(other);
    path
}

/// A log's key.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Result<Self> {
        let (algorithm, random) = (&ECDSA_P256_SHA256_ASN1_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).ok().context("a key")?;
        Ok(Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).ok().context("the same key")?))
    }

    /// `SubjectPublicKeyInfo`, as `key` in log lists.
    fn spki(&self) -> Vec<u8> {
        let head =
            b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        [head, self.0.public_key().as_ref()].concat()
    }

    /// A `TreeHeadSignature` (RFC 6962 section 3.5).
    fn sign(&self, time: u64, size: usize, root: &Hash) -> Result<Vec<u8>> {
        let signed = [&[0, 1][..], &time.to_be_bytes(), &(size as u64).to_be_bytes(), root].concat();
        let signature = self.0.sign(&SystemRandom::new(), &signed).ok().context("a signature")?;
        let signature = signature.as_ref();
        Ok([&[4, 3, 0, u8::try_from(signature.len())?], signature].concat())
    }
}

fn now() -> Result<u64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_millis())?)
}

/// What was submitted to a log.
#[derive(Clone)]
enum Submitted {
    Certificate(Vec<u8>),
    /// By what is left of it without the extension that makes it one.
    Precertificate(Vec<u8>),
}

impl Submitted {
    /// `TimestampedEntry` (RFC 6962 section 3.4), with these extensions.
    fn timestamped(&self, extensions: &[u8]) -> Vec<u8> {
        let sized = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[1..], bytes].concat();
        let signed = match self {
            Self::Certificate(der) => [&[0, 0][..], &sized(der)].concat(),
            Self::Precertificate(tbs) => [&[0, 1][..], &[7; 32], &sized(tbs)].concat(),
        };
        [&1_767_139_200_000_u64.to_be_bytes()[..], &signed, &[0, extensions.len() as u8], extensions].concat()
    }
}

/// A certificate for a name that nobody here asked for.
fn strange(name: &str) -> Result<Vec<u8>> {
    let key = rcgen::KeyPair::generate()?;
    Ok(rcgen::CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?.der().to_vec())
}

/// The `TBSCertificate` of a certificate: the first element inside.
fn tbs(der: &[u8]) -> Result<Vec<u8>> {
    let header = |der: &[u8]| match *der.get(1)? {
        short @ 0..0x80 => Some((2, usize::from(short))),
        long => {
            let length = der.get(2..2 + usize::from(long & 0x7f))?;
            Some((2 + length.len(), length.iter().fold(0, |all, byte| (all << 8) | usize::from(*byte))))
        }
    };
    let inner = &der[header(der).context("a header")?.0..];
    let (head, length) = header(inner).context("a header")?;
    Ok(inner.get(..head + length).context("a TBSCertificate")?.to_vec())
}

/// A static log: files in a folder that Caddy serves, compressed where it is asked for that.
struct StaticLog {
    folder: tempfile::TempDir,
    port: u16,
    signer: Signer,
    entries: Vec<Submitted>,
    _caddy: Running,
}

impl StaticLog {
    const ORIGIN: &str = "ct.example/2026h2";

    fn start(entries: Vec<Submitted>) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir(at("log"))?;
        std::fs::write(
            at("Caddyfile"),
            format!(
                "{{\n\tadmin off\n\tskip_install_trust\n\tauto_https off\n\tstorage file_system {}\n}}\nhttp://127.0.0.1:{port} {{\n\troot * {}\n\t\
                 file_server {{\n\t\tprecompressed gzip\n\t}}\n}}\n",
                at("data"),
                folder.path().display()
            ),
        )?;
        let caddy = start_caddy(folder.path())?;
        let log = Self { folder, port, signer: Signer::new()?, entries, _caddy: caddy };
        log.write("ready", b"yes")?;
        eventually("Caddy answers", command::LIMIT, || {
            run("curl", ["-sS", "--fail", &format!("{}/ready", log.url())])
        })?;
        Ok(log)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/log", self.port)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("log").join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        // At once: it is being read.
        std::fs::write(path.with_extension("new"), bytes)?;
        Ok(std::fs::rename(path.with_extension("new"), path)?)
    }

    /// `CtExtensions` with the entry's index.
    fn timestamped(&self, index: usize) -> Vec<u8> {
        self.entries[index].timestamped(&[&[0, 0, 5], &(index as u64).to_be_bytes()[3..]].concat())
    }

    fn hashes(&self, size: usize) -> Vec<Hash> {
        (0..size).map(|index| sha256(&[&[0, 0, 0], &self.timestamped(index)])).collect()
    }

    /// A data tile's `TileLeaf`s, with whatever stands for a precertificate and for a chain.
    fn data(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        let leaf = |index: usize| {
            let submitted: &[u8] = match &self.entries[index] {
                Submitted::Certificate(_) => &[],
                Submitted::Precertificate(_) => &[0, 0, 3, 1, 2, 3],
            };
            [&self.timestamped(index), submitted, &[0, 32], &[9; 32]].concat()
        };
        range.flat_map(leaf).collect()
    }

    /// Writes a data tile, and what of it is sent to those who take gzip.
    fn put_data(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.write(path, bytes)?;
        let packed = command::output(Command::new("gzip").arg("-c").arg(self.path(path)), b"", command::LIMIT)?;
        self.write(&format!("{path}.gz"), &packed.stdout)
    }

    fn gone(&self, path: &str) -> Result<()> {
        let _ = std::fs::remove_file(self.path(&format!("{path}.gz")));
        std::fs::remove_file(self.path(path)).with_context(|| format!("{path} was there"))
    }

    /// Writes all tiles of a tree of so many entries, at most 65,536 of them.
    fn put_tiles(&self, size: usize) -> Result<()> {
        let hashes = self.hashes(size);
        for (number, tile) in hashes.chunks(256).enumerate() {
            let partial = if tile.len() < 256 { format!(".p/{}", tile.len()) } else { String::new() };
            self.write(&format!("tile/0/{number:03}{partial}"), tile.as_flattened())?;
            self.put_data(
                &format!("tile/data/{number:03}{partial}"),
                &self.data(number * 256..number * 256 + tile.len()),
            )?;
        }
        let above: Vec<Hash> = hashes.chunks_exact(256).map(root).collect();
        if above.is_empty() {
            Ok(())
        } else {
            self.write(&format!("tile/1/000.p/{}", above.len()), above.as_flattened())
        }
    }

    fn put_checkpoint(&self, size: usize, signer: &Signer) -> Result<()> {
        let (root, time) = (root(&self.hashes(size)), now()?);
        let log_id = sha256(&[&self.signer.spki()]);
        let id = sha256(&[Self::ORIGIN.as_bytes(), b"\n\x05", &log_id]);
        let body = [&id[..4], &time.to_be_bytes(), &signer.sign(time, size, &root)?].concat();
        let witness = STANDARD.encode([1; 76]);
        let origin = Self::ORIGIN;
        let note = format!(
            "{origin}\n{size}\n{}\n\n\u{2014} witness.example {witness}\n\u{2014} {origin} {}\n",
            STANDARD.encode(root),
            STANDARD.encode(body)
        );
        self.write("checkpoint", note.as_bytes())
    }

    fn publish(&self, size: usize) -> Result<()> {
        self.put_tiles(size)?;
        self.put_checkpoint(size, &self.signer)
    }
}

/// What of the region's settings a test says, and again with a change, after which logs are looked at at once.
struct Settings<'a> {
    instance: &'a Instance,
    line: String,
    times: usize,
}

impl Settings<'_> {
    fn say(&mut self, logs: &[&str]) -> Result<()> {
        self.times += 1;
        let logs: Vec<_> = logs.iter().map(|log| format!("--ct-log {log}")).collect();
        self.instance.run(&format!("{} --per-week {} {}", self.line, self.times, logs.join(" "))).map(drop)
    }
}

fn metric(instance: &Instance, name: &str) -> Result<u64> {
    let text = instance.scrape("metrics")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

/// The names that were told of as unexpected.
fn told(instance: &Instance) -> Result<Vec<String>> {
    let events: Value = serde_json::from_str(&instance.run("get events -A -o json")?)?;
    let unexpected =
        events["items"].as_array().into_iter().flatten().filter(|one| one["reason"] == "UnexpectedCertificate");
    let name = |event: &Value| {
        let message = event["message"].as_str()?.strip_prefix("a certificate for ")?;
        Some(message.split_once(".alice.hearth.internal that no device asked for")?.0.to_owned())
    };
    let mut names: Vec<_> =
        unexpected.map(|event| name(event).unwrap_or_else(|| event["message"].to_string())).collect();
    names.sort();
    Ok(names)
}

/// Waits until a log was refused for a reason once more than `before`, and an event says why.
fn refused(instance: &Instance, reason: &str, before: u64, why: &str) -> Result<()> {
    instance.eventually(&format!("the log is refused: {reason}"), || {
        let now = metric(instance, &format!("hearth_ct_failures_total{{reason=\"{reason}\"}}"))?;
        let events = instance.run("get events -n kube-system -o json")?;
        ensure!(now > before && events.contains("TransparencyLogRefused") && events.contains(why), "{now}: {events}");
        Ok(())
    })
}

fn certificate_of(instance: &Instance) -> Result<Vec<u8>> {
    let status = instance.get("certificate", "nas", "alice")?["status"].take();
    let pem = status["certificate"].as_str().context("a certificate")?;
    let (body, _) = pem.split_once("-----END").context("an end")?;
    let lines = body.lines().skip_while(|line| !line.starts_with("-----BEGIN")).skip(1);
    Ok(STANDARD.decode(lines.collect::<String>())?)
}

#[test]
fn a_static_log_is_read_as_far_as_it_is_signed_and_what_it_commits_to() -> Result<()> {
    let instance = Instance::up("none")?;
    serve(&instance)?;
    let pebble = Pebble::start(&instance.address("dns")?, 3600)?;
    let line = format!("region acme {}", pebble.account(&instance, &pebble.directory())?);
    let mut settings = Settings { instance: &instance, line, times: 0 };
    settings.say(&[])?;
    let own = instance.eventually("the device has a certificate", || certificate_of(&instance))?;

    let mut entries = vec![Submitted::Certificate(strange("other.example")?); 300];
    (entries[3], entries[4]) = (Submitted::Certificate(own.clone()), Submitted::Precertificate(tbs(&own)?));
    for (index, name) in [(5, "login"), (199, "vpn"), (249, "last"), (250, "later"), (290, "mail")] {
        let der = strange(&format!("{name}.alice.hearth.internal"))?;
        entries[index] = if index == 199 { Submitted::Precertificate(tbs(&der)?) } else { Submitted::Certificate(der) };
    }
    entries[6] = Submitted::Certificate(b"what no program reads, of odd.Alice.HEARTH.internal".to_vec());
    let log = StaticLog::start(entries)?;
    let watched = format!("{},key={}", log.url(), STANDARD.encode(log.signer.spki()));
    let all_told = |names: &[&str]| {
        instance.eventually(&format!("it is told of {names:?}"), || {
            let told = told(&instance)?;
            ensure!(told == names, "{told:?}");
            Ok(())
        })
    };
    let failures = |reason: &str| metric(&instance, &format!("hearth_ct_failures_total{{reason=\"{reason}\"}}"));

    // Of what a device asked for nothing is told, neither as certificate nor before it was one.
    log.publish(10)?;
    ensure!(instance.refused(&format!("{} --ct-log {},key=AAAA", settings.line, log.url()))?.contains("log lists"));
    settings.say(&[&watched])?;
    all_told(&["login"])?;
    instance.eventually("it is told of the one that cannot be read", || {
        let events = instance.run("get events -n kube-system -o json")?;
        ensure!(events.contains("UnreadableCertificate") && events.contains("entry 6 of the log"), "{events}");
        Ok(())
    })?;
    let place = || -> Result<String> { Ok(instance.get("configmap", "region-ct", "kube-system")?["data"].to_string()) };
    instance.eventually("its place is kept", || {
        let kept = place()?;
        ensure!(kept.contains(&format!("\"10 {} sha256:", log.url())), "{kept}");
        Ok(())
    })?;

    // Whoever has the place where it is read, and not its key, is not believed.
    log.put_tiles(210)?;
    log.put_checkpoint(210, &Signer::new()?)?;
    settings.say(&[&watched])?;
    refused(&instance, "signature", 0, "its signature is not by the log's key")?;
    ensure!(
        metric(&instance, "hearth_ct_entries_total")? == 10 && told(&instance)? == ["login"],
        "nothing of it is read"
    );

    // The tiles of that tree were partial; meanwhile there is more than the checkpoint says, and the full ones are there alone.
    log.put_tiles(256)?;
    log.gone("tile/data/000.p/210")?;
    log.gone("tile/0/000.p/210")?;
    log.put_checkpoint(250, &log.signer)?;
    settings.say(&[&watched])?;
    all_told(&["last", "login", "vpn"])?;

    // A tile that is not the one that was committed to: one entry is another. It is told, and read again until it is right.
    let inconsistent = failures("inconsistent")?;
    log.publish(300)?;
    let good = log.data(256..300);
    let mut bad = log.data(256..290);
    let of_other = log.entries[0].timestamped(&[&[0, 0, 5][..], &290_u64.to_be_bytes()[3..]].concat());
    bad.extend([&of_other[..], &[0, 0]].concat());
    bad.extend(log.data(291..300));
    log.put_data("tile/data/001.p/44", &bad)?;
    settings.say(&[&watched])?;
    refused(&instance, "inconsistent", inconsistent, "commits to")?;
    ensure!(!told(&instance)?.contains(&"mail".to_owned()));
    ensure!(place()?.contains(&format!("\"250 {} sha256:", log.url())), "nothing is passed over");
    // One that is torn.
    let malformed = failures("malformed")?;
    log.put_data("tile/data/001.p/44", &good[..good.len() - 1])?;
    settings.say(&[&watched])?;
    refused(&instance, "malformed", malformed, "in the midst of entry 299")?;
    log.put_data("tile/data/001.p/44", &good)?;
    settings.say(&[&watched])?;
    all_told(&["last", "later", "login", "mail", "vpn"])?;
    instance.eventually("it is read to its end", || {
        let kept = place()?;
        ensure!(kept.contains(&format!("\"300 {} sha256:", log.url())), "{kept}");
        Ok(())
    })
}

/// What an RFC 6962 log has: its entries, how many of them it shows, and its root where that is not theirs.
struct State {
    entries: Vec<Submitted>,
    size: usize,
    root: Option<Hash>,
    signer: Signer,
}

impl State {
    fn answer(&self, path: &str) -> Result<Value> {
        let number = |name: &str| {
            let found = path.split(['?', '&']).find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|text| text.parse::<usize>().ok()).unwrap_or_default()
        };
        let leaf = |entry: &Submitted| [&[0, 0][..], &entry.timestamped(&[])].concat();
        let hashes: Vec<Hash> = self.entries[..self.size].iter().map(|entry| sha256(&[&[0], &leaf(entry)])).collect();
        let texts = |hashes: &[Hash]| hashes.iter().map(|hash| STANDARD.encode(hash)).collect::<Vec<_>>();
        Ok(match path.strip_prefix("/log/ct/v1/").context("a log's path")?.split('?').next() {
            Some("get-sth") => {
                let (root, time) = (self.root.unwrap_or_else(|| root(&hashes)), now()?);
                json!({"tree_size": self.size, "timestamp": time, "sha256_root_hash": STANDARD.encode(root),
                    "tree_head_signature": STANDARD.encode(self.signer.sign(time, self.size, &root)?)})
            }
            Some("get-sth-consistency") => {
                json!({"consistency": texts(&proof(number("first"), &hashes[..number("second")], true))})
            }
            Some("get-entries") => {
                // Three at most, as a log may.
                let end = self.size.min(number("end") + 1).min(number("start") + 3);
                let entries = self.entries[number("start")..end].iter();
                let entries =
                    entries.map(|entry| json!({"leaf_input": STANDARD.encode(leaf(entry)), "extra_data": ""}));
                json!({"entries": entries.collect::<Vec<_>>()})
            }
            other => anyhow::bail!("{other:?}"),
        })
    }
}

/// A log by RFC 6962 section 4. Returns its URL.
fn answer_for(state: Arc<Mutex<State>>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/log", listener.local_addr()?);
    // Ends with the test's process.
    std::thread::spawn(move || -> Result<()> {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream?);
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
                    break;
                }
                lines.push(line);
            }
            let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
            let answer = state.lock().unwrap_or_else(PoisonError::into_inner).answer(path);
            let (status, body) = match answer {
                Ok(answer) => ("200 OK", answer.to_string()),
                Err(error) => ("404 Not Found", error.to_string()),
            };
            write!(
                stream.get_mut(),
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )?;
        }
        Ok(())
    });
    Ok(url)
}

#[test]
fn a_log_of_rfc_6962_is_told_from_a_static_one_and_held_to_its_signed_tree_heads() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.apply("{apiVersion: v1, kind: Namespace, metadata: {name: alice}}")?;
    let mut entries = vec![Submitted::Certificate(strange("other.example")?); 1500];
    for (index, name) in [(100, "old"), (1100, "login"), (1250, "vpn"), (1450, "mail")] {
        entries[index] = Submitted::Certificate(strange(&format!("{name}.alice.hearth.internal"))?);
    }
    entries[1250] = Submitted::Precertificate(tbs(&strange("vpn.alice.hearth.internal")?)?);
    let signer = Signer::new()?;
    let spki = STANDARD.encode(signer.spki());
    let state = Arc::new(Mutex::new(State { entries, size: 1200, root: None, signer }));
    let change = |size: usize, root: Option<Hash>| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.size, state.root) = (size, root);
    };
    let url = answer_for(Arc::clone(&state))?;
    // No authority is needed for logs to be read.
    let line = format!("region acme --accept-terms --directory https://127.0.0.1:{}/dir", free_port()?);
    let mut settings = Settings { instance: &instance, line, times: 0 };
    let all_told = |names: &[&str]| {
        instance.eventually(&format!("it is told of {names:?}"), || {
            let told = told(&instance)?;
            ensure!(told == names, "{told:?}");
            Ok(())
        })
    };
    // First with another log's key, then with its own; its last entries are read.
    settings.say(&[&format!("{url},key={}", STANDARD.encode(Signer::new()?.spki()))])?;
    refused(&instance, "signature", 0, "get-sth is refused: its signature is not by the log's key")?;
    ensure!(told(&instance)?.is_empty(), "nothing of it is read");
    let watched = format!("{url},key={spki}");
    settings.say(&[&watched])?;
    all_told(&["login"])?;
    // It signs a tree that has another past.
    change(1300, Some([7; 32]));
    settings.say(&[&watched])?;
    refused(&instance, "inconsistent", 0, "another past than before")?;
    change(1150, None);
    settings.say(&[&watched])?;
    refused(&instance, "inconsistent", 1, "a log never gets shorter")?;
    change(1300, None);
    settings.say(&[&watched])?;
    all_told(&["login", "vpn"])?;
    // Without the key, it is believed what it says of itself.
    change(1500, None);
    settings.say(&[&url])?;
    all_told(&["login", "mail", "vpn"])?;
    // What is no log of either kind is said to be none.
    let nowhere = StaticLog::start(Vec::new())?;
    settings.say(&[&nowhere.url()])?;
    instance.eventually("it is no log", || {
        let logs = instance.logs();
        ensure!(logs.contains("neither by the static API") && logs.contains("nor by RFC 6962"), "{logs}");
        Ok(())
    })
}
