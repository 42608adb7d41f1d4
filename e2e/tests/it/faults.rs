//! What clients are told while the servers of a region are killed, stopped, started anew and short of room: real processes, real clients,
//! and the checker of histories over all of it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::Instance,
    server::{PATIENCE, Server, place, three, three_by},
};

use serde_json::Value;

use crate::load::{Load, judge};

fn signal(server: &Server, name: &str) -> Result<()> {
    command::run("kill", [&format!("-{name}"), &server.pid().to_string()]).map(drop)
}

#[test]
fn a_killed_leader_and_a_killed_follower_lose_nothing_that_clients_were_told() -> Result<()> {
    let mut servers = three()?;
    let load = Load::begin(&servers)?;
    for leads in [true, false] {
        let leader = place(servers[0].leader()?);
        let dead = if leads { leader } else { (leader + 1) % 3 };
        servers[dead].kill()?;
        load.goes_on()?;
        let api = servers[dead].api.clone();
        servers[dead].again(&api, None)?;
        servers[dead].all_well(&[1, 2, 3])?;
        load.goes_on()?;
    }
    let (_, history) = load.end(&servers)?;
    judge(&history)
}

#[test]
fn a_leader_that_hung_tells_nobody_what_was_true_before() -> Result<()> {
    let servers = three()?;
    let load = Load::begin(&servers)?;
    for _ in 0..2 {
        let hung = place(servers[0].leader()?);
        let other = &servers[(hung + 1) % 3];
        signal(&servers[hung], "STOP")?;
        let elected = eventually("another one leads", PATIENCE, || {
            let leader = other.leader()?;
            ensure!(place(leader) != hung);
            Ok(())
        });
        let going = elected.and_then(|()| load.goes_on());
        // Also where that failed: a stopped process cannot be ended in good order.
        signal(&servers[hung], "CONT")?;
        going?;
        other.all_well(&[1, 2, 3])?;
        load.goes_on()?;
    }
    let (_, history) = load.end(&servers)?;
    judge(&history)
}

/// Stops servers one after another and starts them as the release of a feature level, or as this one.
fn roll(servers: &mut [Server], level: Option<u64>, load: &Load) -> Result<()> {
    for server in servers {
        signal(server, "TERM")?;
        server.ended()?;
        server.feature_level = level;
        let api = server.api.clone();
        server.again(&api, None)?;
        server.all_well(&[1, 2, 3])?;
        load.goes_on()?;
    }
    Ok(())
}

#[test]
fn servers_started_anew_one_after_another_fail_no_request() -> Result<()> {
    let mut servers = three()?;
    let load = Load::begin(&servers)?;
    roll(&mut servers, None, &load)?;
    let (failures, history) = load.end(&servers)?;
    ensure!(failures.is_empty(), "{failures:#?}");
    judge(&history)
}

#[test]
fn a_server_with_a_full_disk_says_so_and_the_others_go_on_until_there_is_room() -> Result<()> {
    let disk = |place| if place == 2 { Instance::on_disk(256) } else { Instance::empty() };
    let mut servers = three_by(|place, join| Server::spawned(disk(place)?, join))?;
    let load = Load::begin(&servers)?;
    let filler = servers[2].instance.path().join("filler");
    for block in ["1M", "4k", "1"] {
        let fill = format!("dd if=/dev/zero of={} bs={block} oflag=append conv=notrunc", filler.display());
        let text = command::fail(Command::new("sh").args(["-c", &fill]))?;
        ensure!(text.contains("No space left"), "{text}");
    }
    // The log may have room that it set aside.
    let full = "the store takes no more writes: no space left";
    for n in 0..64 {
        if servers[2].log().contains(full) {
            break;
        }
        let data = "x".repeat(200_000);
        let object = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: large-{n}, namespace: filled}}, data: {{a: {data}}}}}"
        );
        servers[0].instance.apply(&object)?;
    }
    eventually("it says so", PATIENCE, || {
        ensure!(servers[2].log().contains(full), "{}", servers[2].log());
        Ok(())
    })?;
    load.goes_on()?;
    std::fs::remove_file(&filler)?;
    // As whoever started it would.
    let said = servers[2].ended()?;
    ensure!(said.contains("starting anew"), "{said}");
    let api = servers[2].api.clone();
    servers[2].again(&api, None)?;
    servers[2].all_well(&[1, 2, 3])?;
    load.goes_on()?;
    let (_, history) = load.end(&servers)?;
    judge(&history)
}

/// The feature level that the region is at, as a backup taken from a server says.
fn level(server: &Server) -> Result<u64> {
    let file = server.instance.path().join("level.backup");
    server.instance.run(&format!("region backup {}", file.display()))?;
    let head = server.instance.run(&format!("region inspect {} -o json", file.display()))?;
    std::fs::remove_file(&file)?;
    serde_json::from_str::<Value>(&head)?["featureLevel"].as_u64().context("a feature level")
}

#[test]
fn an_update_server_by_server_can_be_gone_back_on_until_it_is_done_and_fails_no_request() -> Result<()> {
    let (old, new) = (2, u64::from(hearth_raft::FEATURE_LEVEL));
    let mut servers = three_by(|_, join| Server::spawned_as(Instance::empty()?, "127.0.0.1:0", Some(old), join))?;
    ensure!(level(&servers[0])? == old);
    let load = Load::begin(&servers)?;
    // One of three, then back: the others know no more than before.
    roll(&mut servers[1..2], None, &load)?;
    ensure!(level(&servers[1])? == old, "the level rose before all servers know it");
    roll(&mut servers[1..2], Some(old), &load)?;
    ensure!(level(&servers[1])? == old);
    roll(&mut servers, None, &load)?;
    eventually("the level rises", PATIENCE, || {
        ensure!(level(&servers[0])? == new);
        Ok(())
    })?;
    // There is no way back any more, and whoever tries is told so.
    signal(&servers[0], "TERM")?;
    servers[0].ended()?;
    servers[0].feature_level = Some(old);
    let api = servers[0].api.clone();
    servers[0].spawn(&api, None)?;
    let said = servers[0].ended()?;
    // Of its snapshot, or of the entry that raised it.
    let told = |what: &str| said.contains(&format!("the {what} is at feature level {new}, this server knows"));
    ensure!(told("store") || told("cluster"), "{said}");
    servers[0].feature_level = None;
    servers[0].again(&api, None)?;
    servers[0].all_well(&[1, 2, 3])?;
    load.goes_on()?;
    let (failures, history) = load.end(&servers)?;
    ensure!(failures.is_empty(), "{failures:#?}");
    judge(&history)
}
