//! DNS: what the region's own name server says, and what this machine's resolver makes of it.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use hearth_proto::v1::InfoResponse;
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    name::Subject,
    query::{self, Answer},
    report::Step,
    within,
};

const STEP: &str = "dns";
/// How long this machine's resolver may take; glibc's waits five seconds for its first server.
const RESOLVER: Duration = Duration::from_secs(6);
/// Zones below these are nobody's on the internet (RFC 6761, RFC 6762, RFC 8375, RFC 9476 and the list of special-use names).
const PRIVATE: [&str; 9] =
    ["internal", "test", "example", "invalid", "localhost", "local", "home.arpa", "alt", "onion"];

/// The addresses that a request would go to, and what is told of them.
pub(super) async fn look(subject: &Subject, info: &InfoResponse) -> (Vec<IpAddr>, Step) {
    let hostname = subject.hostname.as_str();
    let (own, resolved) = tokio::join!(ask_region(info, hostname), resolve(hostname));
    let step = judge(subject, &own, resolved.as_deref());
    let addresses = match (own, resolved) {
        (Ok((_, Answer::Addresses(own))), _) if !own.is_empty() => own,
        (_, Some(resolved)) if !resolved.is_empty() => resolved,
        _ => Vec::new(),
    };
    (addresses, step)
}

/// Which of the region's servers answered, and what; or why none did.
async fn ask_region(info: &InfoResponse, hostname: &str) -> Result<(SocketAddr, Answer), String> {
    let mut problem = "the region does not say where its name server is".to_owned();
    for server in info.dns.iter().filter_map(|text| text.parse::<SocketAddr>().ok()) {
        match query::addresses(server, hostname).await {
            Ok(answer) => return Ok((server, answer)),
            Err(why) => problem = format!("the region's name server {server} cannot be asked: {why}"),
        }
    }
    Err(problem)
}

/// What this machine's resolver says; `None` where it does not know the name or does not answer.
async fn resolve(hostname: &str) -> Option<Vec<IpAddr>> {
    let (sender, found) = oneshot::channel();
    let name = format!("{hostname}.");
    // A thread of its own, which nobody waits for: getaddrinfo cannot be ended.
    std::thread::spawn(move || {
        let found = (name.as_str(), 443).to_socket_addrs().map(|all| all.map(|one| one.ip()).collect::<Vec<_>>());
        let _ = sender.send(found.ok());
    });
    let mut found = within(RESOLVER, found).await?.ok()??;
    found.sort();
    found.dedup();
    Some(found)
}

fn judge(subject: &Subject, own: &Result<(SocketAddr, Answer), String>, resolved: Option<&[IpAddr]>) -> Step {
    let zone = subject.zone.as_str();
    let facts = json!({
        "region": match own { Ok((_, Answer::Addresses(own))) => json!(own), _ => json!(null) },
        "resolver": resolved,
    });
    let step = match own {
        Err(why) => match resolved {
            Some(resolved) if subject.zone.is_empty() => {
                Step::ok(STEP, format!("this machine's resolver says {}; the region was not asked", list(resolved)))
            }
            _ => Step::unknown(STEP, why.clone()).advise(
                "is UDP and TCP to that address and port let through from here? Resolvers of the internet need it too",
            ),
        },
        Ok((server, Answer::NoSuchName)) => {
            Step::broken(STEP, format!("the region's name server {server} says that there is no such name (NXDOMAIN)"))
        }
        Ok((server, Answer::Failed(code))) => {
            Step::broken(STEP, format!("the region's name server {server} refuses to answer: {}", code_text(*code)))
        }
        Ok((server, Answer::Addresses(own))) if own.is_empty() => {
            Step::broken(STEP, format!("the region's name server {server} knows the name and gives no address for it"))
                .advise("its gateways listen on no address that can be told: start servers with --advertise IP")
        }
        Ok((server, Answer::Addresses(own))) => compare(zone, *server, own, resolved),
    };
    step.facts(facts)
}

fn compare(zone: &str, server: SocketAddr, own: &[IpAddr], resolved: Option<&[IpAddr]>) -> Step {
    let said = format!("the region's name server {server} says {}", list(own));
    match resolved {
        Some(resolved) if resolved.iter().all(|one| own.contains(one)) && !resolved.is_empty() => {
            Step::ok(STEP, format!("{said}, and so does this machine's resolver"))
        }
        Some(resolved) if !resolved.is_empty() => {
            Step::broken(STEP, format!("{said}, and this machine's resolver {}", list(resolved))).advise(format!(
                "it may remember what was true before, or {zone} is delegated elsewhere, or a router here answers by itself: compare `dig {zone} NS`"
            ))
        }
        _ if is_private(zone) => Step::ok(STEP, said).detail(format!(
            "this machine's resolver does not know the name, which is as it must be unless it was told: {zone} is nobody's on the internet"
        )),
        _ => Step::broken(STEP, format!("{said}, and this machine's resolver does not know the name")).advise(format!(
            "delegate {zone} to the region where the domain is registered: NS records that name ns1.{zone}, with its address"
        )),
    }
}

fn is_private(zone: &str) -> bool {
    PRIVATE.iter().any(|top| zone == *top || zone.strip_suffix(top).is_some_and(|rest| rest.ends_with('.')))
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn code_text(code: u8) -> String {
    match code {
        2 => "SERVFAIL: it may be starting".into(),
        5 => "REFUSED: the name is not of its zone".into(),
        other => format!("code {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::trace::report::Verdict;

    #[test]
    fn the_regions_word_and_the_resolvers_are_compared() {
        let subject = |zone: &str| Subject { zone: zone.into(), hostname: format!("a.b.{zone}"), ..Subject::default() };
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let server = SocketAddr::from(([192, 0, 2, 53], 53));
        let says = |ips: &[IpAddr]| Ok((server, Answer::Addresses(ips.to_vec())));
        let cases = [
            ("photos.org", says(&[ip(1), ip(2)]), Some(vec![ip(2)]), Verdict::Ok),
            ("photos.org", says(&[ip(1)]), Some(vec![ip(9)]), Verdict::Broken),
            ("photos.org", says(&[ip(1)]), None, Verdict::Broken),
            ("hearth.internal", says(&[ip(1)]), None, Verdict::Ok),
            ("notinternal", says(&[ip(1)]), None, Verdict::Broken),
            ("hearth.internal", says(&[]), None, Verdict::Broken),
            ("hearth.internal", Ok((server, Answer::NoSuchName)), None, Verdict::Broken),
            ("hearth.internal", Err("no".to_owned()), None, Verdict::Unknown),
            ("", Err("no".to_owned()), Some(vec![ip(1)]), Verdict::Ok),
        ];
        for (zone, own, resolved, verdict) in cases {
            let step = judge(&subject(zone), &own, resolved.as_deref());
            assert_eq!(step.verdict, verdict, "{zone} {own:?} {resolved:?}: {}", step.says);
        }
    }
}
