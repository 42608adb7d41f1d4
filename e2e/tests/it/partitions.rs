//! What clients are told while servers cannot reach each other: each server in a network namespace of its own, cut off by the firewall
//! of the network between them, and the checker of histories over all of it.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use hearth_e2e::{
    eventually,
    instance::Instance,
    netns::Netns,
    server::{PATIENCE, Server, place, three_by},
};

use crate::load::{Load, judge};

/// A region of three, and a network that clients reach all of them by.
struct World {
    // Ended before their namespaces go.
    servers: Vec<Server>,
    clients: Netns,
    network: Netns,
    _homes: Vec<Netns>,
}

fn host(place: usize) -> String {
    format!("198.51.{}.2", 100 + place)
}

impl World {
    fn new() -> Result<Self> {
        let (network, clients) = (Netns::new("net")?, Netns::new("clients")?);
        network.run("sysctl -qw net.ipv4.ip_forward=1")?;
        let mut homes = Vec::new();
        let attach = |netns: &Netns, place: usize, device: &str| {
            let (gateway, own) = (format!("198.51.{}.1", 100 + place), host(place));
            network.link(device, &[&format!("{gateway}/24")], netns, "eth0", &[&format!("{own}/24")])?;
            netns.run(&format!("ip route add default via {gateway}"))
        };
        attach(&clients, 9, "clients")?;
        let servers = three_by(|place, join| {
            let home = Netns::new(&format!("srv{place}"))?;
            attach(&home, place, &format!("srv{place}"))?;
            let instance = Instance::empty()?.in_netns(home.name());
            homes.push(home);
            Server::spawned_as(instance, &format!("{}:7443", host(place)), None, join)
        })?;
        Ok(Self { servers, clients, network, _homes: homes })
    }

    /// From now on, packets from the first server of each pair to the second are lost, and no others.
    fn cut(&self, pairs: &[(usize, usize)]) -> Result<()> {
        let rule = |(from, to): &(usize, usize)| format!("ip saddr {} ip daddr {} drop;", host(*from), host(*to));
        let rules: String = pairs.iter().map(rule).collect();
        // All of it at once.
        self.network.nft(&format!(
            "table ip cut {{}}
            delete table ip cut
            table ip cut {{
                chain forward {{
                    type filter hook forward priority filter
                    {rules}
                }}
            }}"
        ))
    }

    fn leader(&self) -> Result<usize> {
        Ok(place(self.servers[0].leader()?))
    }

    /// Waits until another server than `old` leads, as the others say.
    fn another_leads(&self, old: usize) -> Result<()> {
        let other = &self.servers[(old + 1) % 3];
        eventually("another one leads", PATIENCE, || {
            let leader = place(other.leader()?);
            ensure!(leader != old, "{leader} leads");
            Ok(())
        })
    }

    /// Everybody reaches everybody again.
    fn heal(&self, load: &Load) -> Result<()> {
        self.cut(&[])?;
        for server in &self.servers {
            server.all_well(&[1, 2, 3])?;
        }
        load.goes_on()
    }
}

/// Both ways between a server and all others.
fn around(one: usize) -> Vec<(usize, usize)> {
    [out_of(one), into(one)].concat()
}

fn out_of(one: usize) -> Vec<(usize, usize)> {
    (0..3).filter(|other| *other != one).map(|other| (one, other)).collect()
}

fn into(one: usize) -> Vec<(usize, usize)> {
    (0..3).filter(|other| *other != one).map(|other| (other, one)).collect()
}

#[test]
fn a_leader_that_is_cut_off_whole_or_one_way_is_replaced_and_tells_nobody_what_was_true_before() -> Result<()> {
    let world = World::new()?;
    let load = Load::begin_in(&world.clients, &world.servers)?;
    for cut in [around, out_of, into] {
        let leader = world.leader()?;
        world.cut(&cut(leader))?;
        world.another_leads(leader)?;
        load.goes_on()?;
        world.heal(&load)?;
    }
    let (_, history) = load.end(&world.servers)?;
    judge(&history)
}

#[test]
fn a_follower_that_does_not_hear_the_leader_and_one_that_comes_and_goes_unseat_nobody() -> Result<()> {
    let world = World::new()?;
    let load = Load::begin_in(&world.clients, &world.servers)?;
    let leader = world.leader()?;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    // It reaches the other follower, and could win its vote, if that did not hear the leader.
    world.cut(&[(leader, follower), (follower, leader)])?;
    let missed = || {
        let members = world.servers[leader].members()?;
        let found = members.iter().find(|one| one["id"] == follower as u64 + 1);
        let silent = found.and_then(|one| one["silentSeconds"].as_f64()).unwrap_or_default();
        ensure!(silent > 3.0, "silent for {silent} s");
        Ok(())
    };
    // Several elections' time.
    eventually("it is missed", PATIENCE, missed)?;
    load.goes_on()?;
    ensure!(place(world.servers[other].leader()?) == leader, "the leader was unseated");
    world.heal(&load)?;
    ensure!(world.leader()? == leader, "the leader was unseated");
    for _ in 0..8 {
        world.cut(&around(follower))?;
        // The fault itself, not a wait: shorter and longer than an election takes.
        thread::sleep(Duration::from_millis(700));
        world.cut(&[])?;
        load.goes_on()?;
    }
    world.heal(&load)?;
    ensure!(world.leader()? == leader, "the leader was unseated");
    let (_, history) = load.end(&world.servers)?;
    judge(&history)
}
