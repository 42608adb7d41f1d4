//! Cookies, and rates of those who show none.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RecordType as T,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};
use tokio::net::UdpSocket;

use crate::support::{PATIENCE, Running, ask_udp, config, loopback, question, with_edns};

const CLIENT: [u8; 8] = *b"a client";

fn with_cookie(name: &str, kind: T, cookie: &[u8]) -> Vec<u8> {
    let mut message = with_edns(question(name, kind), 1232);
    message.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(10, cookie.to_vec()));
    message.to_vec().unwrap()
}

fn cookie_of(message: &Message) -> Vec<u8> {
    match message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Cookie)) {
        Some(EdnsOption::Unknown(10, cookie)) => cookie.clone(),
        other => panic!("no cookie but {other:?}"),
    }
}

/// Answers over UDP are limited at once, and no more come.
async fn strict() -> Running {
    let mut config = config();
    (config.limit_loopback, config.udp_answers_per_second, config.udp_burst) = (true, 0, 1);
    Running::start(config).await
}

#[tokio::test]
async fn a_cookie_is_given_and_whoever_returns_it_is_not_limited() {
    let server = strict().await;
    let name = "photos.alice.hearth.internal.";
    let first = Message::from_vec(&ask_udp(server.address, &with_cookie(name, T::A, &CLIENT)).await).unwrap();
    let cookie = cookie_of(&first);
    assert_eq!((first.answers.len(), cookie.len(), &cookie[..8]), (2, 24, &CLIENT[..]));
    for _ in 0..50 {
        let answer = Message::from_vec(&ask_udp(server.address, &with_cookie(name, T::A, &cookie)).await).unwrap();
        assert_eq!((answer.answers.len(), cookie_of(&answer)), (2, cookie.clone()));
    }
    // The burst is used up: half a cookie, or a wrong one, is answered with a whole one and nothing else.
    let client = UdpSocket::bind(loopback()).await.unwrap();
    let mut wrong = cookie.clone();
    wrong[20] ^= 1;
    for shown in [&CLIENT[..], &wrong] {
        for _ in 0..2 {
            client.send_to(&with_cookie(name, T::A, shown), server.address).await.unwrap();
        }
        let mut buffer = [0; 512];
        let received =
            tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await.expect("every second gets a hint");
        let hint = Message::from_vec(&buffer[..received.unwrap()]).unwrap();
        assert_eq!(u16::from(hint.metadata.response_code), 23, "BADCOOKIE");
        assert!(hint.answers.is_empty() && !hint.metadata.truncation);
        let again = with_cookie(name, T::A, &cookie_of(&hint));
        assert_eq!(Message::from_vec(&ask_udp(server.address, &again).await).unwrap().answers.len(), 2);
    }
    assert!(server.metric("hearth_dns_unanswered_total", &["udp", "limited"]) >= 1.0);
}

#[tokio::test]
async fn servers_with_one_secret_take_each_others_cookies_and_others_do_not() {
    let (one, other) = (strict().await, strict().await);
    let name = "hearth.internal.";
    let first = ask_udp(one.address, &with_cookie(name, T::A, &CLIENT)).await;
    let whole = with_cookie(name, T::A, &cookie_of(&Message::from_vec(&first).unwrap()));
    for _ in 0..20 {
        assert_eq!(Message::from_vec(&ask_udp(other.address, &whole).await).unwrap().answers.len(), 2);
    }
}

#[tokio::test]
async fn malformed_cookies_are_malformed_queries() {
    let server = Running::start(config()).await;
    for length in [1, 7, 9, 15, 41] {
        let asked = with_cookie("hearth.internal.", T::SOA, &vec![1; length]);
        let answer = Message::from_vec(&ask_udp(server.address, &asked).await).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{length} bytes");
    }
}

#[tokio::test]
async fn one_name_that_is_asked_for_too_often_is_limited_and_another_is_not() {
    let mut config = config();
    (config.limit_loopback, config.udp_answers_per_name, config.udp_name_burst) = (true, 0, 3);
    let server = Running::start(config).await;
    let ask = async |name: &str| {
        let bytes = ask_udp(server.address, &question(name, T::A).to_vec().unwrap()).await;
        Message::from_vec(&bytes).unwrap()
    };
    for _ in 0..3 {
        assert_eq!(ask("photos.alice.hearth.internal.").await.answers.len(), 2);
    }
    // In another case it is the same name. The first of two beyond gets nothing, the second a hint.
    let client = UdpSocket::bind(loopback()).await.unwrap();
    let bytes = question("PHOTOS.alice.hearth.internal.", T::A).to_vec().unwrap();
    for _ in 0..2 {
        client.send_to(&bytes, server.address).await.unwrap();
    }
    let mut buffer = [0; 512];
    let length = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await.expect("a hint").unwrap();
    let hint = Message::from_vec(&buffer[..length]).unwrap();
    assert!(hint.metadata.truncation && hint.answers.is_empty() && length <= bytes.len());
    assert_eq!(ask("notes.alice.hearth.internal.").await.answers.len(), 2);
    // Names that do not exist count as one.
    for at in 0..3 {
        assert_eq!(ask(&format!("n{at}.hearth.internal.")).await.metadata.response_code, ResponseCode::NXDomain);
    }
    for at in 3..5 {
        let bytes = question(&format!("n{at}.alice.hearth.internal."), T::A).to_vec().unwrap();
        client.send_to(&bytes, server.address).await.unwrap();
    }
    let length = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await.expect("a hint").unwrap();
    assert!(Message::from_vec(&buffer[..length]).unwrap().metadata.truncation);
}
