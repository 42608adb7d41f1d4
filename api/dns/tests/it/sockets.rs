//! Ports, connections, limits, the end.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hearth_dns::{DnsConfig, DnsError, DnsServer, limits};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::support::{
    Now, PATIENCE, Running, ask_tcp, ask_udp, config, loopback, question, receive_tcp, routes, send_tcp,
};

fn soa() -> Vec<u8> {
    question("hearth.internal.", RecordType::SOA).to_vec().unwrap()
}

async fn refused(config: DnsConfig) -> DnsError {
    DnsServer::bind(config, routes(), Arc::new(Now), &Registry::new()).await.expect_err("must not bind")
}

#[tokio::test]
async fn port_zero_is_one_port_for_udp_and_tcp() {
    let server = Running::start(config()).await;
    assert_ne!(server.address.port(), 0);
    assert_eq!(ask_udp(server.address, &soa()).await, ask_tcp(server.address, &soa()).await);
    let other = Running::start(config()).await;
    assert_ne!(other.address, server.address);
}

#[tokio::test]
async fn ipv6_is_served_too() {
    let mut config = config();
    config.listen = "[::1]:0".parse().unwrap();
    let server = Running::start(config).await;
    assert!(server.address.is_ipv6());
    let client = UdpSocket::bind("[::1]:0").await.unwrap();
    client.send_to(&soa(), server.address).await.unwrap();
    let mut buffer = [0; 512];
    let (length, _) = tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await.expect("an answer").unwrap();
    assert_eq!(buffer[..length], ask_tcp(server.address, &soa()).await);
}

#[tokio::test]
async fn an_answer_comes_from_the_address_that_was_asked() {
    for (listen, asked) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "127.0.0.3"), ("[::]:0", "::1")] {
        let mut config = config();
        config.listen = listen.parse().unwrap();
        let server = Running::start(config).await;
        let asked: IpAddr = asked.parse().unwrap();
        let client = UdpSocket::bind(if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).await.unwrap();
        // Several at once, as they come under load; each has its answer.
        for id in 0..40 {
            let mut query = question("hearth.internal.", RecordType::SOA);
            query.metadata.id = id;
            client.send_to(&query.to_vec().unwrap(), (asked, server.address.port())).await.unwrap();
        }
        let mut answered = BTreeSet::new();
        while answered.len() < 40 {
            let mut buffer = [0; 512];
            let (length, from) =
                tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await.expect("an answer").unwrap();
            assert_eq!(from, SocketAddr::new(asked, server.address.port()), "asked at {asked}, listening at {listen}");
            answered.insert(Message::from_vec(&buffer[..length]).unwrap().metadata.id);
        }
        assert_eq!(answered, (0..40).collect());
    }
}

#[tokio::test]
async fn a_port_in_use_is_told_by_the_kind_of_the_io_error() {
    let tcp = TcpListener::bind(loopback()).await.unwrap();
    let udp = UdpSocket::bind(loopback()).await.unwrap();
    for taken in [tcp.local_addr().unwrap(), udp.local_addr().unwrap()] {
        let mut config = config();
        config.listen = taken;
        let error = refused(config).await;
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::AddrInUse), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);
    }
    let running = Running::start(config()).await;
    let mut again = config();
    again.listen = running.address;
    assert_eq!(
        io::Error::from(refused(again).await).kind(),
        io::ErrorKind::AddrInUse,
        "two servers never share a port"
    );
}

#[tokio::test]
async fn configurations_that_cannot_work_are_refused_with_a_reason() {
    let with = |change: &dyn Fn(&mut DnsConfig)| {
        let mut config = config();
        change(&mut config);
        config
    };
    let long = [["a"; 30].join("."), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
    let cases = [
        (with(&|config| config.zone = String::new()), "cannot be a zone"),
        (with(&|config| config.zone = "bad_zone".into()), "cannot be a zone"),
        (with(&|config| config.zone = long.clone()), "cannot be a zone"),
        (with(&|config| config.gateway.clear()), "no gateway address"),
        (with(&|config| config.gateway.push([0, 0, 0, 0].into())), "0.0.0.0"),
        (with(&|config| config.gateway.push([224, 0, 0, 1].into())), "224.0.0.1"),
        (with(&|config| config.ttl = limits::MAX_TTL + Duration::from_secs(1)), "TTL"),
    ];
    for (config, part) in cases {
        let error = refused(config).await;
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    }
    let mut elsewhere = config();
    elsewhere.listen = SocketAddr::from(([192, 0, 2, 1], 0));
    assert_eq!(io::Error::from(refused(elsewhere).await).kind(), io::ErrorKind::AddrNotAvailable);
    let registry = Registry::new();
    let _first = DnsServer::bind(config(), routes(), Arc::new(Now), &registry).await.expect("the first");
    let second = DnsServer::bind(config(), routes(), Arc::new(Now), &registry).await;
    assert!(matches!(second, Err(DnsError::Metrics(_))), "{second:?}");
}

#[tokio::test]
async fn the_zone_may_be_given_with_a_dot_and_in_capitals() {
    let mut config = config();
    config.zone = "Hearth.INTERNAL.".into();
    let server = Running::start(config).await;
    let asked = question("photos.alice.hearth.internal.", RecordType::AAAA).to_vec().unwrap();
    let answer = Message::from_vec(&ask_udp(server.address, &asked).await).unwrap();
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn many_queries_on_one_connection_are_answered_in_their_order() {
    let server = Running::start(config()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut asked = question("photos.alice.hearth.internal.", RecordType::A);
    for id in 0..50 {
        asked.metadata.id = id;
        send_tcp(&mut stream, &asked.to_vec().unwrap()).await;
    }
    for id in 0..50 {
        let answer = Message::from_vec(&receive_tcp(&mut stream).await.unwrap()).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (id, 2));
    }
    assert!((server.metric("hearth_dns_tcp_connections_open", &[]) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_query_that_comes_byte_by_byte_is_answered() {
    let server = Running::start(config()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let bytes = soa();
    let framed: Vec<u8> = (bytes.len() as u16).to_be_bytes().into_iter().chain(bytes).collect();
    for byte in framed {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answer = Message::from_vec(&receive_tcp(&mut stream).await.unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

/// Waits for the server to end a connection.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes it");
    assert!(ended.is_err() || rest.is_empty(), "an answer to nothing: {rest:?}");
}

#[tokio::test]
async fn connections_that_are_idle_slow_or_no_dns_are_closed() {
    let mut config = config();
    config.tcp_idle = Duration::from_millis(100);
    config.tcp_transfer = Duration::from_millis(100);
    let server = Running::start(config).await;
    let beginnings: [&[u8]; 5] = [
        b"",                      // idle
        b"\x00",                  // half a length
        b"\x00\x20abc",           // part of a message
        b"\xff\xffabc",           // longer than a query may be
        b"\x00\x03abc\x00\x03ab", // shorter than a header
    ];
    for beginning in beginnings {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        closed(&mut stream).await;
    }
    // One that asks for ever and never reads is closed too, and its memory is bounded meanwhile.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let bytes = soa();
    let framed: Vec<u8> = (bytes.len() as u16).to_be_bytes().into_iter().chain(bytes).collect();
    let flood = framed.repeat(1000);
    let flooding = async { while stream.write_all(&flood).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, flooding).await.expect("the server closes it");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once_and_places_come_back() {
    let mut config = config();
    config.tcp_connections_per_client = 2;
    let server = Running::start(config).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        send_tcp(&mut stream, &soa()).await;
        receive_tcp(&mut stream).await.unwrap();
        held.push(stream);
    }
    let mut third = TcpStream::connect(server.address).await.unwrap();
    closed(&mut third).await;
    assert!(server.metric("hearth_dns_tcp_refused_total", &["connections_of_client"]) > 0.0);
    ask_udp(server.address, &soa()).await;
    drop(held);
    let again = async {
        loop {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            send_tcp(&mut stream, &soa()).await;
            if receive_tcp(&mut stream).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the places come back");
}

#[tokio::test]
async fn shutdown_ends_run_and_frees_the_port() {
    let mut server = Running::start(config()).await;
    let mut open = TcpStream::connect(server.address).await.unwrap();
    send_tcp(&mut open, &soa()).await;
    receive_tcp(&mut open).await.unwrap();
    server.shutdown.cancel();
    let ended = tokio::time::timeout(PATIENCE, &mut server.ended).await.expect("it ends").expect("no panic");
    ended.expect("a clean end");
    closed(&mut open).await;
    assert!(server.metric("hearth_dns_tcp_connections_open", &[]).abs() < f64::EPSILON);
    let mut config = config();
    config.listen = server.address;
    DnsServer::bind(config, Arc::clone(&server.routes) as _, Arc::new(Now), &Registry::new())
        .await
        .expect("the port is free again");
}

#[tokio::test]
async fn a_flood_over_udp_is_cut_down_and_asked_to_come_over_tcp() {
    let mut config = config();
    (config.limit_loopback, config.udp_answers_per_second, config.udp_burst) = (true, 1, 20);
    let server = Running::start(config).await;
    let client = UdpSocket::bind(loopback()).await.unwrap();
    // Few enough to wait in the sockets' queues.
    for _ in 0..60 {
        client.send_to(&soa(), server.address).await.unwrap();
    }
    let mut buffer = [0; 512];
    let mut answered = 0;
    let hint = loop {
        let received = tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await;
        let (length, _) = received.expect("a hint, or an answer").unwrap();
        let message = Message::from_vec(&buffer[..length]).unwrap();
        if message.metadata.truncation {
            break (length, message);
        }
        answered += 1;
    };
    // Several tasks read the socket, so that a hint may come before the last of the answers.
    assert!(answered > 0);
    assert!(hint.0 <= soa().len() && hint.1.answers.is_empty(), "no amplification");
    assert!(server.metric("hearth_dns_unanswered_total", &["udp", "limited"]) >= 1.0);
    let over_tcp = Message::from_vec(&ask_tcp(server.address, &soa()).await).unwrap();
    assert_eq!((over_tcp.metadata.response_code, over_tcp.answers.len()), (ResponseCode::NoError, 1));
}
