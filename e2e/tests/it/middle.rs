//! Nobody in the middle reads: neither the wire nor the gateway's memory nor a file beyond the device's own has what a user sends, or the
//! key that could show it.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance, netns::Netns};

const HOST: &str = "notes.alice.hearth.internal";
/// Of memory at a time; a text on the border of two is found since they overlap.
const BLOCK: usize = 1 << 20;

/// A capture of everything on the loopback of a namespace, where callers, gateway and device speak to each other.
struct Capture(Child, PathBuf);

impl Capture {
    fn start(netns: &Netns, file: PathBuf) -> Result<Self> {
        let mut tcpdump = netns.program("tcpdump");
        tcpdump.args(["-i", "lo", "-U", "--immediate-mode", "-s", "0", "-B", "65536", "-Z", "root", "-w"]).arg(&file);
        let child = tcpdump.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let capture = Self(child, file);
        hearth_e2e::eventually("the capture begins", std::time::Duration::from_secs(20), || {
            // The file's header is written once the socket is open.
            ensure!(capture.1.metadata()?.len() >= 24);
            Ok(())
        })?;
        Ok(capture)
    }

    fn read(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.1)?)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has(bytes: &[u8], what: &[u8]) -> bool {
    // The first byte alone is looked for fast.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == what[0]) {
        rest = &rest[at..];
        if rest.starts_with(what) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// Which of these texts a process has in its memory, in all that is mapped to be written.
fn in_memory(pid: u32, texts: &[&[u8]]) -> Result<Vec<bool>> {
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or_default();
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found = vec![false; texts.len()];
    let mut block = vec![0; BLOCK];
    for line in std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let (mut at, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if !rights.starts_with("rw") {
            continue;
        }
        while at < end {
            let length = BLOCK.min((end - at) as usize);
            // What was never touched, or was unmapped meanwhile, has nothing.
            let Ok(read @ 1..) = memory.read_at(&mut block[..length], at) else { break };
            for (text, found) in texts.iter().zip(&mut found) {
                *found |= has(&block[..read], text);
            }
            at += if read == BLOCK { (BLOCK - longest) as u64 } else { read as u64 };
        }
    }
    Ok(found)
}

/// The files below a folder that have one of these texts.
fn files_with(folder: &Path, texts: &[&[u8]]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), texts)?);
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            // One that went meanwhile has nothing.
            if let Ok(mut file) = File::open(entry.path()) {
                file.read_to_end(&mut bytes)?;
            }
            if texts.iter().any(|text| has(&bytes, text)) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn only(pids: &[u32]) -> Result<u32> {
    match pids {
        [pid] => Ok(*pid),
        other => anyhow::bail!("one process was expected: {other:?}"),
    }
}

#[test]
fn what_a_user_sends_is_neither_on_the_wire_nor_in_the_gateways_memory_and_the_key_is_the_devices_alone() -> Result<()>
{
    let netns = Netns::new("middle")?;
    let instance = Instance::empty()?.in_netns(netns.name());
    let capture = Capture::start(&netns, instance.path().join("wire.pcap"))?;
    instance.start("notes")?;
    let mark = format!("mark-{}-{}", std::process::id(), "b4b1b6f0e9");
    for version in ["--http1.1", "--http2"] {
        let body = format!("{{\"text\":\"{mark}\"}}");
        let arguments = [
            version,
            "--fail",
            "-H",
            "content-type: application/json",
            "-H",
            &format!("cookie: s={mark}"),
            "-d",
            &body,
        ];
        let answer = command::succeed(&mut instance.curl(HOST, "/api/notes", &arguments)?)?;
        ensure!(answer.contains(&mark), "{answer}");
    }
    // Back again, so that the gateway carried it both ways.
    let listed = instance.fetch(HOST, "/api/notes")?;
    ensure!(listed.contains(&mark), "{listed}");

    // Last something in the clear: once the capture has it, it has all that came before.
    let gateway = instance.address("gateway")?;
    let mut last = instance.program("curl");
    command::succeed(last.args(["-sS", "-H", "Host: last.example", &format!("http://{gateway}/")]))?;
    let wire = hearth_e2e::eventually("the capture has everything", std::time::Duration::from_secs(20), || {
        let wire = capture.read()?;
        ensure!(has(&wire, b"last.example"));
        Ok(wire)
    })?;
    ensure!(has(&wire, HOST.as_bytes()), "the capture has no server name, though that is in the clear");
    ensure!(!has(&wire, mark.as_bytes()), "the mark is on the wire");

    let (server, agent) = (only(&instance.pids(" server "))?, only(&instance.pids(" agent "))?);
    let keys = files_with(instance.path(), &[b"-----BEGIN PRIVATE KEY-----".as_slice()])?;
    let name = format!("{HOST}.key");
    let key = keys.iter().find(|path| path.ends_with(&name)).with_context(|| format!("no {name} in {keys:?}"))?;
    let pem = std::fs::read_to_string(key)?;
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = command::output(Command::new("base64").arg("-d"), base64.as_bytes(), command::LIMIT)?.stdout;
    // The scalar of a P-256 key (RFC 5915) in its envelope (RFC 5958).
    let scalar =
        der.windows(2).position(|two| two == [4, 32]).map(|at| der[at + 2..at + 34].to_vec()).context("no scalar")?;
    let line = pem.lines().nth(1).context("a line of the key")?;
    let texts: [&[u8]; 4] = [HOST.as_bytes(), mark.as_bytes(), &scalar, line.as_bytes()];
    let found = in_memory(server, &texts)?;
    ensure!(found == [true, false, false, false], "the server's memory has (name, mark, key, key as text): {found:?}");
    // The same search finds what is there: the device has its key.
    ensure!(in_memory(agent, &[&scalar])? == [true], "the search does not find the key where it is");
    let found = files_with(instance.path(), &[&scalar, line.as_bytes()])?;
    ensure!(found == [key.clone()], "the key is in {found:?}");
    Ok(())
}
