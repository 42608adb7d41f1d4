//! Three servers and more, in one process, over a network that can be cut.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use hearth_raft::RaftStore;
use hearth_types::{
    Clock as _, GroupKind, Reason, RequestId, Revision, Status,
    group::{Group as _, MemberRole, Server},
    store::{Consistency, Expect, Op, Query, Store as _, WatchEvent, write_one},
};

use super::{
    network::{Cluster, address},
    support::{Fixed, PATIENCE, data, key, object},
};

/// Creates or updates an object; the name and data make the request id.
async fn put(store: &RaftStore, name: &str, data: &str) -> Result<Revision, Status> {
    let object = object(name, data);
    let exists = store.get(&key(name), Consistency::Linearizable).await?.is_some();
    let op = if exists { Op::Update { object, expect: Expect::default() } } else { Op::Create { object } };
    let id = RequestId::from(format!("{name}-{}", data.chars().take(40).collect::<String>()));
    write_one(store, id, op, Fixed.now()).await.map(|object| object.revision())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_serves_everywhere_and_outlives_its_leader() {
    let mut cluster = Cluster::of(3).await;
    let members = cluster.store(2).members().await.expect("members");
    assert_eq!(members.iter().map(|member| member.server.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(members.iter().all(|member| member.role == MemberRole::Voter));
    assert_eq!(members.iter().filter(|member| member.leads).count(), 1);

    // Written anywhere, read everywhere; and at once where it was written.
    for id in [1, 2, 3] {
        let name = format!("by-{id}");
        put(cluster.store(id), &name, "x").await.expect("written");
        assert_eq!(data(cluster.store(id), &name, Consistency::Local).await.as_deref(), Some("x"));
        for other in [1, 2, 3] {
            assert_eq!(data(cluster.store(other), &name, Consistency::Linearizable).await.as_deref(), Some("x"));
        }
    }
    let incarnations: BTreeSet<String> =
        [1, 2, 3].iter().map(|id| cluster.store(*id).incarnation().to_string()).collect();
    assert_eq!(incarnations.len(), 1);

    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    let other = cluster.ids()[0];
    put(cluster.store(other), "after", "y").await.expect("written without the old leader");
    assert_ne!(cluster.leader().await, leader);

    cluster.start(leader).await;
    cluster.store(leader).ready().await.expect("ready again");
    assert_eq!(data(cluster.store(leader), "after", Consistency::Local).await.as_deref(), Some("y"));
    cluster.equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_reads_nothing_old() {
    let mut cluster = Cluster::of(3).await;
    put(cluster.store(1), "a", "old").await.expect("written");
    let old = cluster.leader().await;
    cluster.network.cut(old);
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != old).collect();
    put(cluster.store(others[0]), "a", "new").await.expect("written by the majority");
    // Within the time that it may still believe to lead, and after it.
    let read = tokio::time::timeout(Duration::from_secs(3), data(cluster.store(old), "a", Consistency::Linearizable));
    assert!(read.await.is_err(), "a server that is cut off answered a read");
    assert_eq!(data(cluster.store(old), "a", Consistency::Local).await.as_deref(), Some("old"));
    let create = Op::Create { object: object("b", "lost") };
    let write = write_one(cluster.store(old), RequestId::from("b"), create, Fixed.now());
    let write = tokio::time::timeout(Duration::from_secs(1), write);
    assert!(write.await.is_err(), "a server that is cut off acknowledged a write");
    cluster.network.heal();
    cluster.store(old).ready().await.expect("ready");
    assert_eq!(data(cluster.store(old), "a", Consistency::Linearizable).await.as_deref(), Some("new"));
    cluster.equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_disturbs_nobody() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let term = cluster.store(leader).leadership().term;
    let cut = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
    cluster.network.cut(cut);
    // Long enough for several elections that it cannot win; with Pre-Vote they raise no term.
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        put(cluster.store(leader), "tick", &format!("{:?}", start.elapsed())).await.expect("written");
    }
    cluster.network.heal();
    cluster.store(cut).ready().await.expect("ready");
    assert_eq!(cluster.store(cut).leadership().term, term);
    assert_eq!(cluster.leader().await, leader);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_replaced_and_the_last_majority_stays() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let dead = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
    cluster.kill(dead).await;
    // Two are left, both needed.
    let needed = cluster.ids().into_iter().find(|id| *id != leader).expect("the other follower");
    let refused = cluster.store(leader).remove(needed).await.expect_err("no majority would be left");
    assert_eq!(refused.reason, Reason::Conflict, "{refused}");
    assert!(refused.message.contains(&format!("server {dead}")), "{refused}");

    cluster.join(4).await;
    cluster.store(needed).remove(dead).await.expect("removed");
    let members = cluster.store(4).members().await.expect("members");
    let mut left: Vec<u64> = members.iter().map(|member| member.server.id).collect();
    left.sort_unstable();
    let mut expected = vec![leader, needed, 4];
    expected.sort_unstable();
    assert_eq!(left, expected);
    assert_eq!(cluster.store(4).remove(dead).await.expect_err("gone").reason, Reason::NotFound);
    put(cluster.store(4), "a", "x").await.expect("written");

    // The leader itself can go, down to one, which stays.
    let leader = cluster.leader().await;
    cluster.store(4).remove(leader).await.expect("the leader hands over and is removed");
    cluster.kill(leader).await;
    let left = cluster.ids();
    put(cluster.store(left[0]), "b", "y").await.expect("written");
    cluster.store(left[0]).remove(left[1]).await.expect("removed");
    let last = cluster.store(left[0]).remove(left[0]).await.expect_err("the last one stays");
    assert_eq!(last.reason, Reason::Conflict);
    put(cluster.store(left[0]), "c", "z").await.expect("written alone");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_told() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let mut told = cluster.store(leader).watch_leadership();
    assert!(told.next().await.expect("the present").here);
    let to = cluster.ids().into_iter().find(|id| *id != leader).expect("another");
    let now = cluster.store(leader).transfer_leader(Some(to)).await.expect("handed over");
    assert_eq!(now, Server { id: to, address: address(to) });
    assert_eq!(cluster.leader().await, to);
    let lost = tokio::time::timeout(PATIENCE, async { while told.next().await.expect("told").here {} });
    lost.await.expect("told that it no longer leads");
    let anyone = cluster.store(to).transfer_leader(None).await.expect("handed over");
    assert_ne!(anyone.id, to);
    assert_eq!(cluster.store(to).transfer_leader(Some(77)).await.expect_err("unknown").reason, Reason::NotFound);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_far_behind_gets_a_snapshot_in_parts() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let behind = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
    cluster.kill(behind).await;
    // Larger than a part, over more entries than the log keeps.
    let large = "y".repeat(200_000);
    for number in 0..12 {
        put(cluster.store(leader), &format!("large-{number}"), &large).await.expect("written");
    }
    cluster.network.interrupt_snapshots(3);
    // Until the log that it lacks was let go, which happens beside the writes.
    let mut count = 0;
    while cluster.network.parts() < 4 {
        for _ in 0..60 {
            count += 1;
            assert!(count < 3_000, "the log was never cut");
            put(cluster.store(leader), "count", &count.to_string()).await.expect("written");
        }
        cluster.start(behind).await;
        cluster.store(behind).ready().await.expect("ready");
        if cluster.network.parts() < 4 {
            cluster.kill(behind).await;
        }
    }
    assert_eq!(data(cluster.store(behind), "count", Consistency::Local).await, Some(count.to_string()));
    assert_eq!(data(cluster.store(behind), "large-11", Consistency::Local).await, Some(large));
    cluster.equal().await;
    // What came is on disk.
    cluster.kill(behind).await;
    cluster.start(behind).await;
    cluster.store(behind).ready().await.expect("ready");
    cluster.equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_sent_again_elsewhere_happens_once() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let create = || Op::Create { object: object("once", "x") };
    let id = || RequestId::from("the-request");
    let first = write_one(cluster.store(others[0]), id(), create(), Fixed.now()).await.expect("written");
    cluster.kill(leader).await;
    let again = write_one(cluster.store(others[1]), id(), create(), Fixed.now()).await.expect("the same answer");
    assert_eq!(first.revision(), again.revision());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_server() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let query = Query::all(GroupKind::CONFIG_MAP);
    let mut seen: Vec<Revision> = Vec::new();
    let mut from = cluster.store(leader).revision();
    let start = from;
    for round in 0..3_u64 {
        let at = [leader, others[0], others[1]][round as usize];
        let mut events = cluster.store(at).watch(query.clone(), from).await.expect("watched");
        for number in 0..20 {
            put(cluster.store(others[0]), &format!("{round}-{number}"), "x").await.expect("written");
        }
        // It stops half way: the rest comes at the next server.
        for _ in 0..10 {
            let event =
                tokio::time::timeout(PATIENCE, events.next()).await.expect("in time").expect("open").expect("fine");
            match event {
                WatchEvent::Bookmark(revision) => from = revision,
                WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    from = object.revision();
                    seen.push(from);
                }
            }
        }
        if round == 0 {
            cluster.kill(leader).await;
            cluster.start(leader).await;
            cluster.store(leader).ready().await.expect("ready");
        }
    }
    let mut rest = cluster.store(others[1]).watch(query, from).await.expect("watched");
    while seen.len() < 60 {
        let event = tokio::time::timeout(PATIENCE, rest.next()).await.expect("in time").expect("open").expect("fine");
        if let WatchEvent::Added(object) = event {
            seen.push(object.revision());
        }
    }
    let expected: Vec<Revision> = (1..=60).map(|step| Revision(start.0 + step)).collect();
    assert_eq!(seen, expected);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_at_once_start_again_and_an_address_may_change() {
    let mut cluster = Cluster::of(3).await;
    put(cluster.store(1), "a", "x").await.expect("written");
    for id in cluster.ids() {
        cluster.kill(id).await;
    }
    for id in [1, 2, 3] {
        cluster.start(id).await;
    }
    for id in [1, 2, 3] {
        cluster.store(id).ready().await.expect("ready");
        assert_eq!(data(cluster.store(id), "a", Consistency::Local).await.as_deref(), Some("x"));
    }
    cluster.network.rename(2, "elsewhere:1");
    cluster.store(2).admit(Server { id: 2, address: "elsewhere:1".into() }).await.expect("moved");
    let members = cluster.store(2).members().await.expect("members");
    assert_eq!(members[1].server.address, "elsewhere:1");
    put(cluster.store(2), "b", "y").await.expect("written");
    let taken = cluster.store(1).admit(Server { id: 9, address: address(3) }).await.expect_err("the address is taken");
    assert_eq!(taken.reason, Reason::Conflict);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_while_leaders_die() {
    let mut cluster = Cluster::of(3).await;
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let leader = cluster.leader().await;
        let at = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
        let store = cluster.shared(at);
        let writes = (0..40).map(|number| {
            let (store, name) = (store.clone(), format!("{round}-{number}"));
            tokio::spawn(async move { put(&store, &name, "x").await.map(|_| name) })
        });
        let writes: Vec<_> = writes.collect();
        cluster.kill(leader).await;
        for write in join_all(writes).await {
            acknowledged.extend(write.expect("no panic"));
        }
        cluster.start(leader).await;
        cluster.store(leader).ready().await.expect("ready");
    }
    assert!(!acknowledged.is_empty());
    for id in cluster.ids() {
        for name in &acknowledged {
            assert_eq!(data(cluster.store(id), name, Consistency::Linearizable).await.as_deref(), Some("x"), "{name}");
        }
    }
    cluster.equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_make_no_sense_are_refused() {
    let cluster = Cluster::of(1).await;
    let peers = cluster.store(1).peers();
    let garbage = peers.answer(2, vec![0xff; 64].into()).await.expect_err("not a message");
    assert_eq!(garbage.reason, Reason::BadRequest);
    let revision = cluster.store(1).revision();
    for request in super::network::nonsense() {
        let _ = peers.answer(2, request.into()).await;
    }
    put(cluster.store(1), "a", "x").await.expect("it goes on");
    assert!(cluster.store(1).revision() > revision);
}
