//! A message to the zone's name server: it is answered within its size, or not at all.
#![no_main]

use std::sync::{Arc, LazyLock};

use hearth_dns::{Answerer, Asking, DnsConfig, Outcome, PrefixTable, Silence, Transport};
use hearth_types::{
    Timestamp,
    dns::record::{RecordKind, ZoneRecord},
    routes::{RouteEntry, RouteLookup},
};

struct Names;

impl RouteLookup for Names {
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>> {
        let entry = RouteEntry { hostname: hostname.to_owned(), devices: Vec::new() };
        (hostname == "a.b.zone").then(|| Arc::new(entry))
    }

    fn records(&self, name: &str) -> Arc<[ZoneRecord]> {
        let of = |kind: RecordKind, text: &str| kind.parse(text).map(|data| ZoneRecord { kind, ttl: None, data: data.into() });
        match name {
            "*.b.zone" => of(RecordKind::Cname, "a.b.zone").into_iter().collect(),
            "c.b.zone" => of(RecordKind::Cname, "c.b.zone").into_iter().collect(),
            _ => Arc::from([]),
        }
    }

    fn has_names_below(&self, name: &str) -> bool {
        matches!(name, "b.zone" | "zone")
    }

    fn serial(&self) -> u32 {
        1
    }
}

static ANSWERER: LazyLock<Answerer> = LazyLock::new(|| {
    let gateways = vec![[192, 0, 2, 1].into()];
    let config = DnsConfig::new(([127, 0, 0, 1], 0).into(), "zone", gateways, [7; 32]);
    let table = PrefixTable::parse("clients 0.0.0.0/0 x\nclients 10.0.0.0/8 y\n").expect("a table");
    Answerer::new(&config, Arc::new(Names)).expect("a zone").with_locations(Arc::new(table))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        let asking = Asking { ip: [127, 0, 0, 1].into(), transport, now: Timestamp(1_800_000_000_000), steady: 0 };
        match ANSWERER.respond(bytes, asking) {
            Outcome::Answer { bytes: answer, .. } => assert!(answer.len() <= most && answer[..2] == bytes[..2]),
            Outcome::Silent(why) => assert!(matches!(why, Silence::TooShort | Silence::Response), "{why:?}"),
        }
    }
});
