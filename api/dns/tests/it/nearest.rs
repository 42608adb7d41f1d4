//! The nearest gateways, by the address of the client or of its resolver (RFC 7871).

use std::{net::IpAddr, sync::Arc};

use hearth_dns::{Gateway, PrefixTable};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RecordType as T,
        rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
    },
};
use tokio::sync::watch;

use crate::support::{Running, ask_udp, config, question, with_edns};

const TABLE: &str = "
    clients 0.0.0.0/0 ams nyc
    clients 203.0.113.0/24 nyc ams
    clients 127.0.0.0/8 nyc
    clients 2001:db8:77::/48 nyc
";

fn gateway(ip: &str, location: &str) -> Gateway {
    Gateway { location: Some(location.into()), ..Gateway::new(ip.parse().unwrap()) }
}

fn gateways() -> Vec<Gateway> {
    vec![
        gateway("192.0.2.1", "ams"),
        gateway("192.0.2.2", "ams"),
        gateway("198.51.100.1", "nyc"),
        gateway("2001:db8::1", "nyc"),
    ]
}

async fn start() -> (Running, watch::Sender<Arc<[Gateway]>>) {
    let (told, fed) = watch::channel(Arc::from(gateways()));
    let table = Arc::new(PrefixTable::parse(TABLE).unwrap());
    (Running::start_with(config(), |one| one.with_gateways(fed).with_locations(table)).await, told)
}

async fn ask(
    server: &Running,
    name: &str,
    kind: T,
    subnet: Option<ClientSubnet>,
) -> (Vec<String>, Option<ClientSubnet>) {
    let mut message = with_edns(question(name, kind), 1232);
    if let Some(subnet) = subnet {
        message.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Subnet(subnet));
    }
    let answer = Message::from_vec(&ask_udp(server.address, &message.to_vec().unwrap()).await).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let told = match answer.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Subnet)) {
        Some(EdnsOption::Subnet(subnet)) => Some(*subnet),
        _ => None,
    };
    let mut all: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    all.sort();
    (all, told)
}

fn subnet(ip: &str, source: u8) -> ClientSubnet {
    ClientSubnet::new(ip.parse::<IpAddr>().unwrap(), source, 0)
}

const NAME: &str = "photos.alice.hearth.internal.";

#[tokio::test]
async fn the_clients_subnet_decides_and_the_scope_says_for_whom_the_answer_is() {
    let (server, _told) = start().await;
    for (ip, source, expected, scope) in [
        ("203.0.113.0", 24, &["198.51.100.1"][..], 24),
        ("203.0.112.0", 24, &["192.0.2.1", "192.0.2.2"], 24),
        ("10.0.0.0", 8, &["192.0.2.1", "192.0.2.2"], 2),
        ("2001:db8:77::", 56, &["198.51.100.1"], 48),
        // Nothing is known of it: all are as near.
        ("2001:db8:1::", 56, &["192.0.2.1", "192.0.2.2", "198.51.100.1"], 42),
        // Nothing is told: the resolver's own address decides, and the answer is for everybody who tells nothing.
        ("0.0.0.0", 0, &["198.51.100.1"], 0),
    ] {
        let (answers, told) = ask(&server, NAME, T::A, Some(subnet(ip, source))).await;
        assert_eq!(answers, expected, "{ip}/{source}");
        let expected = ClientSubnet::new(ip.parse().unwrap(), source, scope);
        assert_eq!(told, Some(expected), "{ip}/{source}");
    }
    let (answers, told) = ask(&server, NAME, T::A, None).await;
    assert_eq!((answers, told), (vec!["198.51.100.1".to_owned()], None), "the resolver's address");
    // What is the same for everybody says so.
    let (_, told) = ask(&server, "hearth.internal.", T::SOA, Some(subnet("203.0.113.0", 24))).await;
    assert_eq!(told, Some(subnet("203.0.113.0", 24)));
    let (all, told) = ask(&server, "ns1.hearth.internal.", T::A, Some(subnet("203.0.113.0", 24))).await;
    assert_eq!((all.len(), told), (3, Some(subnet("203.0.113.0", 24))));
}

#[tokio::test]
async fn only_gateways_that_answer_are_told_of_and_a_change_is_in_the_next_answer() {
    let (server, told) = start().await;
    let asked = Some(subnet("203.0.113.0", 24));
    let mut all = gateways();
    all[2].healthy = false;
    told.send_replace(Arc::from(all.clone()));
    assert_eq!(ask(&server, NAME, T::A, asked).await.0, ["192.0.2.1", "192.0.2.2"], "none answers over IPv4 in nyc");
    all[0].healthy = false;
    told.send_replace(Arc::from(all.clone()));
    assert_eq!(ask(&server, NAME, T::A, asked).await.0, ["192.0.2.2"]);
    for one in &mut all {
        one.healthy = false;
    }
    told.send_replace(Arc::from(all));
    assert_eq!(
        ask(&server, NAME, T::A, asked).await.0,
        ["192.0.2.1", "192.0.2.2", "198.51.100.1"],
        "it may be this server's fault"
    );
}

#[tokio::test]
async fn subnets_that_break_the_rules_are_malformed_queries() {
    let (server, _told) = start().await;
    for bad in [
        ClientSubnet::new([203, 0, 113, 0].into(), 24, 24),
        ClientSubnet::new([203, 0, 113, 7].into(), 20, 0),
        ClientSubnet::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), 128, 1),
    ] {
        let mut message = with_edns(question(NAME, T::A), 1232);
        message.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Subnet(bad));
        let answer = Message::from_vec(&ask_udp(server.address, &message.to_vec().unwrap()).await).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{bad:?}");
    }
}
