//! How servers join a region, and what an operator does with them.

use std::time::Duration;

use hearth_client::{Client, Selection, device, servers};
use hearth_proto::v1::JoinServerResponse;
use hearth_types::{
    GroupKind, Reason, Status,
    group::{Lane, MAX_SERVERS, PeerTransport as _},
    token::JoinToken,
};

use crate::region::{LIMIT, Region, ZONE, eventually, seed};

async fn token(client: &Client) -> JoinToken {
    client.create_server_token(Duration::ZERO).await.unwrap().token.parse().unwrap()
}

/// `who` tells the keys of servers apart.
async fn join(token: &JoinToken, who: u8, address: &str) -> Result<JoinServerResponse, Status> {
    servers::join(token, &seed(who), address).await
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason, text: &str) {
    let status = result.expect_err(text);
    assert_eq!(status.reason, reason, "{status}");
    assert!(status.message.contains(text), "{status}");
}

#[tokio::test]
async fn a_server_joins_once_and_gets_what_makes_it_one_of_the_region() {
    let region = Region::start().await;
    let client = region.admin();
    let token = token(&client).await;
    let before = region.store.revision();
    let answer = join(&token, 1, "192.0.2.2:7443").await.unwrap();
    assert_eq!(region.store.revision(), before.next(), "token and number in one transaction");
    assert_eq!((answer.id, answer.region.as_str(), answer.zone.as_str()), (2, "home", ZONE));
    assert_eq!((answer.ca_pem.as_ref(), answer.incarnation.as_str()), (region.ca.pem().as_bytes(), "test"));
    let key = std::fs::read_to_string(region.directory.path().join("ca/ca.key")).unwrap();
    assert_eq!(answer.ca_key_pem.trim(), key.trim());
    let members: Vec<_> = answer.servers.iter().map(|one| (one.id, one.address.as_str())).collect();
    assert_eq!(members, [(1, region.address.as_str())]);
    // The same token with the same key again is harmless; also once it has expired.
    region.clock.advance(Duration::from_hours(2));
    let before = region.store.revision();
    assert_eq!(join(&token, 1, "192.0.2.2:7443").await.unwrap(), answer);
    assert_eq!(region.store.revision(), before);
    let shown = client.list_tokens().await.unwrap();
    assert_eq!((shown[0].server, shown[0].used_by_server), (true, 2));
}

#[tokio::test]
async fn what_a_servers_token_is_not_good_for_is_refused_with_its_reason() {
    let region = Region::start().await;
    let client = region.admin();
    let (used, fresh) = (token(&client).await, token(&client).await);
    let devices: JoinToken = client.create_token("alice", Duration::ZERO).await.unwrap().token.parse().unwrap();
    let wrong = JoinToken { secret: format!("{}x", fresh.secret), ..fresh.clone() };
    join(&used, 1, "192.0.2.2:7443").await.unwrap();
    let before = region.store.revision();
    for (token, address, reason, text) in [
        (&used, "192.0.2.3:7443", Reason::Forbidden, "used already, by another server"),
        (&devices, "192.0.2.3:7443", Reason::Forbidden, "for a device"),
        (&wrong, "192.0.2.3:7443", Reason::Unauthorized, "not known to this region"),
        (&fresh, "nowhere", Reason::BadRequest, "must be host:port"),
        (&fresh, "192.0.2.3:0", Reason::BadRequest, "must be host:port"),
        (&fresh, &region.address, Reason::Conflict, "it is that of server 1"),
        (&fresh, &format!("{}:1", "a".repeat(300)), Reason::BadRequest, "must be host:port"),
    ] {
        refused(join(token, 2, address).await, reason, text);
    }
    refused(device::join(&fresh, &seed(2), "nas", "alice", false).await, Reason::Forbidden, "for a server");
    let foreign = JoinToken { ca_hash: [0; 32], ..fresh.clone() };
    refused(
        join(&foreign, 2, "192.0.2.3:7443").await,
        Reason::ServiceUnavailable,
        "not the region that the token is for",
    );
    assert_eq!(region.store.revision(), before, "nothing is half done");
    region.clock.advance(Duration::from_mins(61));
    refused(join(&fresh, 2, "192.0.2.3:7443").await, Reason::Forbidden, "expired");
}

#[tokio::test]
async fn servers_that_join_at_once_have_numbers_of_their_own() {
    let region = Region::start().await;
    let client = region.admin();
    let joins = (0..6).map(|who| {
        let client = client.clone();
        async move {
            let token = token(&client).await;
            join(&token, who, &format!("192.0.2.{}:7443", who + 10)).await.unwrap().id
        }
    });
    let mut ids = futures_util::future::join_all(joins).await;
    ids.sort_unstable();
    assert_eq!(ids, [2, 3, 4, 5, 6, 7]);
    let maps = client.list(&Selection::namespace(GroupKind::CONFIG_MAP, "kube-system")).await.unwrap().0;
    let numbers = maps.iter().find(|map| map.name() == "region-servers").expect("written down").value();
    assert_eq!(numbers["data"].as_object().map(serde_json::Map::len), Some(7), "{numbers}");
}

#[tokio::test]
async fn servers_are_admitted_listed_and_removed_for_good() {
    let region = Region::start().await;
    let client = region.admin();
    let first = token(&client).await;
    let id = join(&first, 1, "192.0.2.2:7443").await.unwrap().id;
    let channels = region.channels(id);
    let one = region.known_as();
    refused(channels.admit(&one, &region.address).await, Reason::Conflict, "it is that of server 1");
    refused(channels.admit(&one, "nowhere").await, Reason::BadRequest, "must be host:port");
    channels.admit(&one, "192.0.2.2:7443").await.unwrap();
    // It has another address after a while.
    channels.admit(&one, "192.0.2.9:7443").await.unwrap();
    let members = client.members().await.unwrap();
    let shown: Vec<_> = members.iter().map(|one| (one.server.to_string(), one.leads, one.behind)).collect();
    let expected = [(one.to_string(), true, Some(0)), ("server 2 at 192.0.2.9:7443".into(), false, Some(1))];
    assert_eq!(shown, expected);
    let both = token(&client).await.addresses;
    assert_eq!(both, [region.address.clone(), "192.0.2.9:7443".into()], "tokens know all servers");
    assert_eq!(client.transfer_leader(Some(2)).await.unwrap().id, 2);
    assert_eq!(client.transfer_leader(None).await.unwrap().id, 1);

    refused(client.remove_server(7).await, Reason::NotFound, "server 7 does not belong to the region; there are: 1, 2");
    client.remove_server(2).await.unwrap();
    assert_eq!(client.members().await.unwrap().len(), 1);
    // It is told so, and does not come back by itself nor by its token.
    let error = channels.call(&one, Lane::Urgent, "a".into()).await.unwrap_err();
    assert!(error.0.contains("server 2 was removed from the region for good"), "{error}");
    tokio::time::timeout(LIMIT, channels.removed()).await.expect("it knows");
    refused(channels.admit(&one, "192.0.2.9:7443").await, Reason::Forbidden, "was removed");
    refused(join(&first, 1, "192.0.2.9:7443").await, Reason::Forbidden, "was removed");
    refused(client.remove_server(2).await, Reason::NotFound, "there are: 1");
    // Its number is nobody else's.
    assert_eq!(join(&token(&client).await, 1, "192.0.2.9:7443").await.unwrap().id, 3);
    // One that never came is removed as well.
    client.remove_server(3).await.unwrap();
    refused(region.channels(3).admit(&one, "192.0.2.9:7443").await, Reason::Forbidden, "was removed");
    refused(client.remove_server(1).await, Reason::Conflict, "the last server");
}

#[tokio::test]
async fn a_region_has_so_many_servers_at_most() {
    let region = Region::start().await;
    let client = region.admin();
    for id in 2..=MAX_SERVERS as u64 {
        let address = format!("192.0.2.{id}:7443");
        region.channels(id).admit(&region.known_as(), &address).await.unwrap();
    }
    let token = token(&client).await;
    refused(join(&token, 1, "192.0.2.99:7443").await, Reason::Conflict, "7 servers already");
    client.remove_server(2).await.unwrap();
    assert_eq!(join(&token, 1, "192.0.2.99:7443").await.unwrap().id, 8);
}

#[tokio::test]
async fn a_removal_is_seen_by_all_servers_and_whoever_leads_belongs() {
    let one = Region::start().await;
    let two = one.server(2, "127.0.0.1:0").await;
    one.server(3, "127.0.0.1:0").await;
    one.admin().remove_server(3).await.unwrap();
    let channels = one.channels(3);
    eventually("the other server knows it too", || async {
        channels.call(&two.known_as(), Lane::Urgent, "a".into()).await.err()?.0.contains("removed").then_some(())
    })
    .await;
    // The region is restored, and goes on with a server that had been removed.
    two.admin().remove_server(1).await.unwrap();
    let again = one.server(1, "127.0.0.1:0").await;
    let channels = again.channels(1);
    eventually("it belongs again", || async { channels.call(&two.known_as(), Lane::Urgent, "a".into()).await.ok() })
        .await;
}
