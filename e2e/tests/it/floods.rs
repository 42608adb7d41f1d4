//! HTTP/2 clients that mean harm, through a real gateway to the ingress of a real device: neither grows, and others are served meanwhile.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::instance::Instance;

use crate::requests::Tls;

const HOST: &str = "notes.alice.hearth.internal";
/// What server and agent may grow by while a flood comes, in KiB.
const MAX_GROWTH: u64 = 64 << 10;
/// Frames of one flood.
const FRAMES: u32 = 200_000;
/// Frames that are sent at once.
const BATCH: u32 = 1000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The fields of a request (RFC 7541: indexed `:method`, `:scheme`, `:path`; a literal `:authority`).
fn request(post: bool) -> Vec<u8> {
    let mut block = vec![if post { 0x83 } else { 0x82 }, 0x87, 0x84, 0x41, HOST.len() as u8];
    block.extend(HOST.as_bytes());
    block
}

/// Makes the frames of a flood, one after another.
type Frames<'a> = Box<dyn Fn(u32) -> Vec<u8> + 'a>;

/// The most memory that a process had since [`forget_peak`], in KiB.
fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// From now on the peak counts (proc(5), clear_refs).
fn forget_peak(pid: u32) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Sends a flood, batch by batch, until it is over or the other side has had enough.
fn flood(instance: &Instance, first: &[u8], frames: impl Fn(u32) -> Vec<u8>) -> Result<()> {
    let mut tls = Tls::connect(instance, HOST, "h2")?;
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(SETTINGS, 0, 0, &[]));
    opening.extend(first);
    tls.send(&opening)?;
    let settings = tls.receive(|got| (got.len() >= 9).then_some(9))?;
    ensure!(settings[3] == SETTINGS, "it does not speak HTTP/2: {settings:?}");
    for batch in 0..FRAMES / BATCH {
        let bytes: Vec<u8> = (batch * BATCH..(batch + 1) * BATCH).flat_map(&frames).collect();
        // It may close at any time.
        if tls.send(&bytes).is_err() {
            break;
        }
        if batch == FRAMES / BATCH / 2 {
            ensure!(instance.fetch(HOST, "/healthz")?.contains("ok"), "others are served meanwhile");
        }
    }
    Ok(())
}

#[test]
fn floods_of_http_2_frames_make_neither_gateway_nor_device_grow() -> Result<()> {
    let instance = Instance::up("notes")?;
    // A first round, so that what is made once is there.
    instance.fetch(HOST, "/healthz")?;
    flood(&instance, &[], |_| frame(PING, 0, 0, &[0; 8]))?;
    let pids: Vec<u32> = [" server ", " agent "].iter().flat_map(|verb| instance.pids(verb)).collect();
    ensure!(pids.len() == 2, "{pids:?}");
    let get = request(false);
    let begun = frame(HEADERS, END_STREAM, 1, &get);
    let post = frame(HEADERS, END_HEADERS, 1, &request(true));
    let floods: [(&str, &[u8], Frames<'_>); 6] = [
        (
            "rapid reset (CVE-2023-44487)",
            &[],
            Box::new(|n| {
                let stream = 2 * n + 1;
                let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, &get);
                both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                both
            }),
        ),
        ("CONTINUATION (CVE-2024-27316)", &begun, Box::new(|_| frame(CONTINUATION, 0, 1, &[0; 512]))),
        ("empty CONTINUATION", &begun, Box::new(|_| frame(CONTINUATION, 0, 1, &[]))),
        ("empty DATA (CVE-2019-9518)", &post, Box::new(|_| frame(DATA, 0, 1, &[]))),
        ("SETTINGS (CVE-2019-9515)", &[], Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        ("PING (CVE-2019-9512)", &[], Box::new(|_| frame(PING, 0, 0, &[0; 8]))),
    ];
    for (name, first, frames) in &floods {
        pids.iter().try_for_each(|pid| forget_peak(*pid))?;
        let before: Vec<u64> = pids.iter().map(|pid| peak(*pid)).collect::<Result<_>>()?;
        flood(&instance, first, frames).with_context(|| (*name).to_owned())?;
        ensure!(instance.fetch(HOST, "/healthz")?.contains("ok"), "{name}: it is served afterwards");
        for (pid, before) in pids.iter().zip(before) {
            let grown = peak(*pid)?.saturating_sub(before);
            ensure!(grown < MAX_GROWTH, "{name}: process {pid} grew by {grown} KiB");
        }
    }
    let now: Vec<u32> = [" server ", " agent "].iter().flat_map(|verb| instance.pids(verb)).collect();
    ensure!(now == pids, "both live on: {now:?}");
    Ok(())
}
