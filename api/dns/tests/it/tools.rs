//! dig and kdig, as operators run them.

use std::net::SocketAddr;

use tokio::process::Command;

use crate::support::{PATIENCE, Running, config};

/// What a tool prints for a question. `+noall` and such are the same for both.
async fn run(tool: &str, server: SocketAddr, words: &[&str]) -> String {
    let mut command = Command::new(tool);
    command.arg(format!("@{}", server.ip())).arg("-p").arg(server.port().to_string()).args(words).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("{tool} {words:?} does not end"))
        .unwrap_or_else(|error| panic!("cannot run {tool}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    // "WARNING: recursion requested but not available" and mDNS notes are about the question.
    text
}

#[tokio::test]
async fn dig_and_kdig_read_every_kind_of_answer_over_udp_and_tcp() {
    let server = Running::start(config()).await;
    let cases: [(&[&str], &[&str]); 9] = [
        (&["photos.alice.hearth.internal", "A", "+short"], &["192.0.2.1\n192.0.2.2"]),
        (&["photos.alice.hearth.internal", "AAAA", "+short"], &["2001:db8::1"]),
        (
            &["hearth.internal", "SOA", "+short"],
            &["ns1.hearth.internal. hostmaster.hearth.internal. 3 3600 600 604800 5"],
        ),
        (&["hearth.internal", "NS", "+short"], &["ns1.hearth.internal."]),
        (&["nobody.alice.hearth.internal", "A"], &["NXDOMAIN", "hostmaster.hearth.internal."]),
        (&["alice.hearth.internal", "A"], &["NOERROR", "hostmaster.hearth.internal."]),
        (&["example.com", "A"], &["REFUSED"]),
        (&["hearth.internal", "A", "+edns=1", "+noednsneg"], &["BADVERS"]),
        (&["version.bind", "CH", "TXT"], &["REFUSED"]),
    ];
    for tool in ["dig", "kdig"] {
        for transport in ["+notcp", "+tcp"] {
            for (words, parts) in cases {
                // kdig has no word for edns negotiation.
                let words = words.iter().copied().filter(|word| tool == "dig" || *word != "+noednsneg");
                let words: Vec<_> = [transport].into_iter().chain(words).collect();
                let text = run(tool, server.address, &words).await;
                for part in parts {
                    let sorted = {
                        let mut lines: Vec<_> = text.lines().collect();
                        lines.sort_unstable();
                        lines.join("\n")
                    };
                    assert!(sorted.contains(part), "{tool} {words:?} lacks {part:?}:\n{text}");
                }
                assert!(!text.contains("malformed") && !text.contains("extra bytes"), "{tool} {words:?}:\n{text}");
            }
        }
    }
}

#[tokio::test]
async fn dig_asks_again_over_tcp_when_the_answer_is_truncated() {
    let mut config = config();
    config.gateway = (0..200_u8).map(|last| std::net::IpAddr::from([192, 0, 2, last])).collect();
    let server = Running::start(config).await;
    let truncated = run("dig", server.address, &["photos.alice.hearth.internal", "A", "+ignore"]).await;
    assert!(truncated.contains(" tc"), "{truncated}");
    let whole = run("dig", server.address, &["photos.alice.hearth.internal", "A", "+short"]).await;
    assert_eq!(whole.lines().filter(|line| line.starts_with("192.0.2.")).count(), 200, "{whole}");
}
