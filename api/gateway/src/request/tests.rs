use proptest::prelude::*;

use super::*;

fn whole(host: Option<&str>, target: &str) -> Head {
    Head::Whole(Request { host: host.map(str::to_owned), target: target.to_owned(), head_only: false })
}

#[test]
fn a_request_names_its_host_and_target() {
    let cases = [
        ("GET / HTTP/1.1\r\nHost: Notes.Alice.Example\r\n\r\n", Some("notes.alice.example"), "/"),
        ("GET /a/b?c=d%20e HTTP/1.0\r\nAccept: */*\r\nhost:a.b:8080  \r\n\r\nbody", Some("a.b"), "/a/b?c=d%20e"),
        ("POST //x?/ HTTP/1.1\nHost: a.b.\n\n", Some("a.b"), "//x?/"),
        ("GET http://c.d:80/e HTTP/1.1\r\nHost: a.b\r\n\r\n", Some("c.d"), "/e"),
        ("GET HTTP://c.d?q HTTP/1.1\r\nHost: a.b\r\n\r\n", Some("c.d"), "/?q"),
        ("GET http://c.d HTTP/1.1\r\nHost: a.b\r\n\r\n", Some("c.d"), "/"),
        ("GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n", Some("192.0.2.1"), "/"),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", None, "/"),
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", None, "/"),
        ("GET / HTTP/1.1\r\nHost: a.b:\r\n\r\n", Some("a.b"), "/"),
        ("GET / HTTP/1.1\r\nX-Name: \u{fc}\r\nHost: a.b\r\n\r\n", Some("a.b"), "/"),
    ];
    for (bytes, host, target) in cases {
        assert_eq!(parse(bytes.as_bytes()), whole(host, target), "{bytes:?}");
    }
    let Head::Whole(request) = parse(b"HEAD / HTTP/1.1\r\nHost: a.b\r\n\r\n") else { panic!("whole") };
    assert!(request.head_only);
}

#[test]
fn what_is_no_request_is_malformed() {
    let cases = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\nHost: a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b/c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b:x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b:+80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b:65536\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [a.b]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a.b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.b\r\n c.d\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n",
        "GET / HTTP/1.1\r\nX: \u{0}\r\n",
        "GET / HTTP/1.1\r\nX: a\rLocation: evil\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET  / HTTP/1.1\r\n",
        "GET /#a HTTP/1.1\r\n",
        "GET /\u{fc} HTTP/1.1\r\n",
        "GET / \r\n",
        "GET /\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT a.b:443 HTTP/1.1\r\n",
        "GET ftp://a.b/ HTTP/1.1\r\n",
        "GET http://u@a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\r\n",
        " ",
        "\u{0}",
        "SSH-2.0-OpenSSH_9.6\r\n",
        "GET \u{1}",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZ",
    ];
    for bytes in cases {
        assert_eq!(parse(bytes.as_bytes()), Head::Malformed, "{bytes:?}");
    }
}

#[test]
fn a_head_is_partial_until_it_is_whole_and_bounded() {
    let bytes = b"GET /a HTTP/1.1\r\nUser-Agent: x\r\nHost: a.b\r\n\r\n";
    for length in 0..bytes.len() {
        assert_eq!(parse(&bytes[..length]), Head::Partial, "{length} bytes");
    }
    let long = |start: &str| [start.as_bytes(), &[b'a'; MAX_HEAD]].concat();
    for start in ["GET /", "GET / HTTP/1.1\r\nHost: "] {
        assert_eq!(parse(&long(start)), Head::TooLong, "{start:?}");
        assert_eq!(parse(&long(start)[..MAX_HEAD - 1]), Head::Partial, "{start:?}");
    }
}

#[test]
fn a_redirect_keeps_name_path_and_query() {
    let now = Timestamp::from_second(784_111_777).expect("a time");
    let redirect = |port| Answer::Redirect { host: "a.b".into(), port, target: "/c?d=e".into() };
    let text = String::from_utf8(redirect(8443).render(false, now)).expect("text");
    assert!(text.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{text}");
    assert!(text.contains("\r\nLocation: https://a.b:8443/c?d=e\r\n"), "{text}");
    assert!(text.contains("\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), "{text}");
    assert!(
        text.contains("\r\nContent-Length: 37\r\n") && text.ends_with("\r\n\r\nThis site is served over HTTPS only.\n")
    );
    let text = String::from_utf8(redirect(443).render(true, now)).expect("text");
    assert!(text.contains("\r\nLocation: https://a.b/c?d=e\r\n"), "{text}");
    assert!(text.contains("\r\nContent-Length: 37\r\n") && text.ends_with("\r\n\r\n"), "a HEAD has no body: {text}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn what_was_decided_stays_so(
        lines in proptest::collection::vec("(GET|HEAD|G T) (/|http://a.b/|\\*)[a-z?#]{0,4} HTTP/[12].[01]|Host: ?[a-z.:\\[\\]0-9]{0,9}|[ -~]{0,20}|", 0..6),
        end in "\r?\n",
        split in any::<prop::sample::Index>(),
    ) {
        let bytes: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), end.as_bytes()].concat()).collect();
        let early = parse(&bytes[..split.index(bytes.len() + 1)]);
        if early != Head::Partial {
            prop_assert_eq!(early, parse(&bytes));
        }
    }

    #[test]
    fn an_answer_is_one_head_whatever_the_request_was(target in "/[!-~]{0,40}", host in "[ -~]{0,20}") {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        if let Head::Whole(Request { host: Some(host), target, .. }) = parse(bytes.as_bytes()) {
            let answer = Answer::Redirect { host, port: 1, target }.render(false, Timestamp::UNIX_EPOCH);
            let text = String::from_utf8(answer).expect("text");
            let head = text.split_once("\r\n\r\n").expect("a head").0;
            prop_assert_eq!(head.split("\r\n").count(), 7);
            prop_assert!(head.split("\r\n").all(|line| !line.contains(['\r', '\n'])));
        }
    }
}
