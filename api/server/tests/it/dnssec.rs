//! The keys of the zone: who has them, who may look, and how they are replaced.

use std::{sync::Arc, time::Duration};

use hearth_api::{CertificateAuthority, ResourceService, ZoneSigning};
use hearth_client::Client;
use hearth_proto::v1::{DnssecKey, DnssecResponse, DnssecStep};
use hearth_types::{
    Reason, Status,
    dns::keys::{KeySet, PREPUBLISH, RETIRE, object_key},
    store::{Consistency, Store as _},
};

use crate::region::{Region, ZONE};

async fn step(client: &Client, step: DnssecStep) -> Result<DnssecResponse, Status> {
    client.dnssec(step, Duration::ZERO).await
}

async fn look(client: &Client) -> DnssecResponse {
    step(client, DnssecStep::Unspecified).await.unwrap()
}

/// Role and phase of each key.
fn phases(answer: &DnssecResponse) -> Vec<(bool, &str)> {
    answer.keys.iter().map(|key| (key.ksk, key.phase.as_str())).collect()
}

fn ds(answer: &DnssecResponse) -> Vec<&String> {
    answer.keys.iter().map(|key: &DnssecKey| &key.ds).filter(|ds| !ds.is_empty()).collect()
}

#[tokio::test]
async fn the_keys_are_made_once_and_every_server_of_the_region_opens_them_and_nobody_else() {
    let region = Region::start().await;
    let other = region.server(2, "127.0.0.1:0").await;
    let first = look(&region.admin()).await;
    assert_eq!(look(&other.admin()).await, first);
    assert_eq!(phases(&first), [(true, "active"), (false, "active")]);
    assert!(ds(&first).len() == 1 && ds(&first)[0].starts_with(&format!("{ZONE}. IN DS ")), "{first:?}");
    let object = region.store.get(&object_key(), Consistency::Linearizable).await.unwrap().unwrap();
    let set = KeySet::read(&object.value()).unwrap();
    let signing = |ca: &CertificateAuthority| {
        let resources = Arc::new(ResourceService::new(region.store.clone(), region.clock.clone(), ZONE));
        ZoneSigning::new(resources, ca).unwrap()
    };
    let stranger = tempfile::tempdir().unwrap();
    let stranger = CertificateAuthority::load_or_create(stranger.path(), ZONE, region.clock.clone()).unwrap();
    let (one, two, stranger) = (signing(&region.ca), signing(&other.ca), signing(&stranger));
    assert_eq!(one.cookie_secret(), two.cookie_secret());
    assert_ne!(one.cookie_secret(), stranger.cookie_secret());
    for key in &set.keys {
        let private = one.open(key).unwrap();
        assert_eq!(two.open(key).unwrap(), private);
        assert!(stranger.open(key).unwrap_err().contains("another CA"));
        // What is stored does not show it.
        let scalar = &private[36..68];
        assert!(!key.sealed_bytes().unwrap().windows(scalar.len()).any(|part| part == scalar));
        // A sealed key is that of its public one.
        let swapped = set.keys.iter().find(|other| other.role != key.role).unwrap();
        let mixed = hearth_types::dns::keys::ZoneKey { sealed: swapped.sealed.clone(), ..key.clone() };
        assert!(one.open(&mixed).is_err());
    }
}

#[tokio::test]
async fn rollovers_go_step_by_step_and_a_step_that_is_not_due_is_refused() {
    let region = Region::start().await;
    let client = region.admin();
    let first = look(&client).await;
    let refused = async |asked, part: &str| {
        let status = step(&client, asked).await.expect_err(part);
        assert!(status.reason == Reason::Conflict && status.message.contains(part), "{status}");
    };
    refused(DnssecStep::DsSeen, "no new KSK").await;
    let rolled = step(&client, DnssecStep::RollZsk).await.unwrap();
    assert_eq!(phases(&rolled), [(true, "active"), (false, "active"), (false, "published")]);
    refused(DnssecStep::RollZsk, "under way").await;
    region.clock.advance(PREPUBLISH);
    assert_eq!(phases(&look(&client).await), [(true, "active"), (false, "retiring"), (false, "active")]);
    region.clock.advance(RETIRE);
    let rolled = step(&client, DnssecStep::RollKsk).await.unwrap();
    assert_eq!(phases(&rolled), [(true, "active"), (false, "active"), (true, "waits-for-ds")]);
    assert_eq!(ds(&rolled).len(), 2);
    assert_eq!(ds(&rolled)[0], ds(&first)[0]);
    let seen = step(&client, DnssecStep::DsSeen).await.unwrap();
    assert_eq!(phases(&seen), [(true, "active"), (false, "active"), (true, "published")]);
    region.clock.advance(Duration::from_hours(25));
    let swapped = look(&client).await;
    assert_eq!(phases(&swapped), [(true, "retiring"), (false, "active"), (true, "active")]);
    assert_eq!(ds(&swapped).len(), 2);
    region.clock.advance(RETIRE);
    assert_eq!(ds(&look(&client).await), [ds(&rolled)[1]]);
}

#[tokio::test]
async fn only_operators_see_or_replace_the_keys() {
    let region = Region::start().await;
    for asked in [DnssecStep::Unspecified, DnssecStep::RollKsk] {
        let refused = step(&region.user("eve", &["people"]), asked).await.expect_err("not for her");
        assert_eq!(refused.reason, Reason::Forbidden, "{refused}");
    }
}
