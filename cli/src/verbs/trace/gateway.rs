//! The gateway: does it take connections, and is it the region's.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use hearth_proto::v1::InfoResponse;
use hearth_types::external::External;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{name::Subject, report::Step, within};

const STEP: &str = "gateway";
/// How long a connection and the answer to a request may take, each.
const PATIENCE: Duration = Duration::from_secs(4);
/// The port of HTTPS.
const HTTPS: u16 = 443;
/// Of an answer that much is read: its head says it all.
const MAX_ANSWER: u64 = 4096;

/// What answers at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// A gateway of the region, which knows the name.
    Serves,
    /// A gateway of the region, which passes nothing on for the name now.
    ServesNot,
    /// It took the connection, which is all that can be told.
    Open,
    /// The device itself took it.
    Device,
    /// Something else.
    Stranger(String),
    /// No way there from this machine, as to IPv6 where it has none.
    NoWay,
    /// No connection.
    Closed(String),
}

impl Found {
    /// Whether it is the region's, or the device.
    fn is_reached(&self) -> bool {
        matches!(self, Self::Serves | Self::ServesNot | Self::Open | Self::Device)
    }
}

/// The first address that takes connections, and what is told.
pub(super) async fn look(
    subject: &Subject,
    info: &InfoResponse,
    addresses: &[IpAddr],
    external: Option<&External>,
) -> (Option<SocketAddr>, Step) {
    let told: Vec<SocketAddr> = info.gateways.iter().filter_map(|text| text.parse().ok()).collect();
    let port = subject.port.or_else(|| told.first().map(SocketAddr::port)).unwrap_or(HTTPS);
    let straight = |ip: IpAddr| external.is_some_and(|external| external.addresses.contains(&ip));
    let port_at = |ip: IpAddr| if straight(ip) { HTTPS } else { port };
    let mut all: Vec<SocketAddr> = addresses.iter().map(|ip| SocketAddr::new(*ip, port_at(*ip))).collect();
    if all.is_empty() {
        // Without DNS, where the region says that its gateway is.
        all.extend(told.iter().map(|address| SocketAddr::new(address.ip(), port)));
    }
    if all.is_empty() {
        return (None, Step::unknown(STEP, "no address of a gateway is known"));
    }
    let found = join_all(all.iter().map(|address| ask(*address, subject, straight(address.ip())))).await;
    let reached = all.iter().zip(&found).find(|(_, found)| found.is_reached()).map(|(address, _)| *address);
    (reached, judge(&all, &found))
}

async fn ask(address: SocketAddr, subject: &Subject, straight: bool) -> Found {
    let mut stream = match within(PATIENCE, TcpStream::connect(address)).await {
        Some(Ok(stream)) => stream,
        Some(Err(error))
            if matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) =>
        {
            return Found::NoWay;
        }
        Some(Err(error)) => return Found::Closed(error.to_string()),
        None => return Found::Closed(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    if straight {
        // Who is there is seen in the handshake.
        return Found::Device;
    }
    if subject.port.is_some() {
        return Found::Open;
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", subject.hostname);
    let mut answer = Vec::new();
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await
    };
    match within(PATIENCE, asked).await {
        Some(Ok(_)) => who(&answer, &subject.hostname),
        // It may be in front of what speaks TLS alone.
        Some(Err(_)) | None => Found::Stranger("it does not answer plain HTTP".to_owned()),
    }
}

/// Who answers like this: a gateway sends everybody to HTTPS, or says that nobody answers by the name.
fn who(answer: &[u8], hostname: &str) -> Found {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    let location = lines.find_map(|line| line.strip_prefix("Location: ")).unwrap_or_default();
    let there = location.strip_prefix("https://").and_then(|rest| rest.strip_prefix(hostname));
    if status.starts_with("HTTP/1.1 308 ") && there.is_some_and(|rest| rest.starts_with([':', '/'])) {
        return Found::Serves;
    }
    if status.starts_with("HTTP/1.1 404 ") && body.starts_with("Nothing answers by this name here now") {
        return Found::ServesNot;
    }
    if status.starts_with("HTTP/1.1 503 ") && body.starts_with("This gateway is starting") {
        return Found::ServesNot;
    }
    match status {
        "" => Found::Stranger("it closes the connection without an answer".to_owned()),
        status => Found::Stranger(format!("it answers {status:?}")),
    }
}

fn judge(addresses: &[SocketAddr], found: &[Found]) -> Step {
    let texts = |wanted: &dyn Fn(&Found) -> bool| -> Vec<String> {
        addresses.iter().zip(found).filter(|(_, one)| wanted(one)).map(|(address, _)| address.to_string()).collect()
    };
    let ours = texts(&Found::is_reached);
    let serving = texts(&|one| matches!(one, Found::Serves | Found::Open | Found::Device));
    let straight = texts(&|one| *one == Found::Device);
    let mut details = Vec::new();
    for (address, found) in addresses.iter().zip(found) {
        match found {
            Found::Stranger(why) => details.push(format!("{address} is no gateway of the region: {why}")),
            Found::Closed(why) => details.push(format!("{address}: {why}")),
            Found::NoWay => details.push(format!("{address}: this machine has no way there")),
            Found::Serves | Found::ServesNot | Found::Open | Found::Device => {}
        }
    }
    let stranger = found.iter().any(|one| matches!(one, Found::Stranger(_)));
    let failed = stranger || found.iter().any(|one| matches!(one, Found::Closed(_)));
    let facts = json!({"reached": ours, "serves": !serving.is_empty()});
    let step = if ours.is_empty() {
        let step = Step::broken(STEP, "no gateway of the region is reached");
        if stranger {
            step.advise(
                "a router, proxy or login page stands between this machine and the gateway, or DNS leads elsewhere",
            )
        } else {
            step.advise(
                "is a server of the region up (`hearth region members`), and does its network let TCP to this port in?",
            )
        }
    } else if failed {
        Step::broken(STEP, format!("{} answers, others do not", ours.join(", ")))
            .advise("whoever is told of the others waits for them: see `hearth region members`; DNS leaves one out some seconds after it stopped")
    } else if straight == ours {
        Step::ok(STEP, format!("none is asked: the device itself takes connections at {}", ours.join(", ")))
    } else if serving.is_empty() {
        Step::ok(STEP, format!("{} is the region's, and passes nothing on for this name now", ours.join(", ")))
    } else {
        Step::ok(STEP, format!("{} is the region's, and takes connections for the name", ours.join(", ")))
    };
    details.into_iter().fold(step, Step::detail).facts(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::trace::report::Verdict;

    #[test]
    fn a_gateway_is_told_from_what_is_none() {
        let who = |text: &str| who(text.as_bytes(), "a.b.test");
        let redirect = |to: &str| format!("HTTP/1.1 308 Permanent Redirect\r\nLocation: {to}\r\n\r\nx");
        assert_eq!(who(&redirect("https://a.b.test/")), Found::Serves);
        assert_eq!(who(&redirect("https://a.b.test:8443/")), Found::Serves);
        let closed = "HTTP/1.1 404 Not Found\r\n\r\nNothing answers by this name here now: x\n";
        assert_eq!(who(closed), Found::ServesNot);
        for other in [
            redirect("https://a.b.test.evil/"),
            redirect("https://login.wifi/"),
            "HTTP/1.1 200 OK\r\n\r\n".into(),
            String::new(),
        ] {
            assert!(matches!(who(&other), Found::Stranger(_)), "{other:?}");
        }
    }

    #[test]
    fn one_gateway_that_does_not_answer_is_a_fault_and_a_missing_ipv6_is_none() {
        let addresses = [SocketAddr::from(([192, 0, 2, 1], 443)), SocketAddr::from(([192, 0, 2, 2], 443))];
        let verdict = |other: Found| judge(&addresses, &[Found::Serves, other]).verdict;
        assert_eq!(verdict(Found::Serves), Verdict::Ok);
        assert_eq!(verdict(Found::NoWay), Verdict::Ok);
        assert_eq!(verdict(Found::Device), Verdict::Ok);
        let straight = judge(&addresses[..1], &[Found::Device]);
        assert!(straight.verdict == Verdict::Ok && straight.says.contains("the device itself"), "{}", straight.says);
        assert_eq!(verdict(Found::Closed("refused".into())), Verdict::Broken);
        assert_eq!(judge(&addresses, &[Found::NoWay, Found::NoWay]).verdict, Verdict::Broken);
    }
}
