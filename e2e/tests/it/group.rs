//! A region of several servers: real processes that join, die, come back, move and are replaced.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::Instance,
    server::{PATIENCE, Server, place, three, three_by},
};
use serde_json::Value;

/// How long a write may take that meets an election: the figures ask for 3 s, on a machine that does nothing else.
const ELECTION: Duration = Duration::from_secs(20);
/// How long a device may be without session when its leader dies: an election and a round over the servers, on a machine that is busy.
const SESSION_AGAIN: Duration = Duration::from_secs(10);

#[test]
fn three_servers_go_on_without_any_one_of_them_and_it_comes_back() -> Result<()> {
    let mut servers = three()?;
    let table = servers[1].instance.run("region members")?;
    ensure!(table.lines().count() == 4 && table.contains("leader") && table.contains("voter"), "{table}");
    // Each takes writes, and each shows at once what any of them acknowledged.
    for (n, server) in servers.iter().enumerate() {
        server.write(&format!("by-{n}"))?;
        servers.iter().try_for_each(|other| other.has(&format!("by-{n}")))?;
    }
    for round in 0..2 {
        let dead = place(servers[0].leader()?);
        let others = [(dead + 1) % 3, (dead + 2) % 3];
        servers[dead].kill()?;
        let name = format!("without-{round}");
        eventually("the others take writes", ELECTION, || servers[others[0]].write(&name))
            .with_context(|| servers[others[0]].log())?;
        servers[others[1]].has(&name)?;
        // It comes back, with what it missed; a token that it does not need is no matter.
        let api = servers[dead].api.clone();
        servers[dead].again(&api, None)?;
        servers[dead].has(&name)?;
        servers[others[0]].all_well(&[1, 2, 3])?;
    }
    // The power fails for all of them, and comes back.
    for server in &mut servers {
        server.kill()?;
    }
    for server in &mut servers {
        let api = server.api.clone();
        server.spawn(&api, None)?;
    }
    for server in &mut servers {
        server.answers()?;
        server.has("without-1")?;
    }
    // Whoever is asked, any can be made to lead.
    for id in [1, 2, 3] {
        let said = servers[place(id % 3 + 1)].instance.run(&format!("region transfer-leader {id}"))?;
        ensure!(said.contains(&format!("server {id} at ")) && servers[0].leader()? == id, "{said}");
    }
    let before = servers[0].leader()?;
    servers[0].instance.run("region transfer-leader")?;
    ensure!(servers[0].leader()? != before);
    // One that is stopped in good order hands over first.
    let stopping = place(servers[0].leader()?);
    command::run("kill", ["-TERM", &servers[stopping].pid().to_string()])?;
    let said = servers[stopping].ended()?;
    ensure!(said.contains("leads from now on"), "{said}");
    let other = &servers[(stopping + 1) % 3];
    ensure!(place(other.leader()?) != stopping);
    other.write("handed-over")?;
    Ok(())
}

#[test]
fn a_server_that_moved_is_found_at_its_new_address() -> Result<()> {
    let mut servers = three()?;
    // One that follows, and the one that leads.
    for leads in [false, true] {
        let moving = servers[0].members()?.iter().find(|one| one["leads"] == leads).and_then(|one| one["id"].as_u64());
        let moving = moving.context("one of them")?;
        let (at, other) = (place(moving), place(moving % 3 + 1));
        // It has to know where the others are, which it does within moments.
        let known = || std::fs::read_to_string(servers[at].instance.path().join("server/member.json"));
        eventually("it remembers all", PATIENCE, || {
            let known = known()?;
            ensure!(servers.iter().all(|server| known.contains(&server.api)), "{known}");
            Ok(())
        })?;
        let old = servers[at].api.clone();
        servers[at].kill()?;
        servers[at].again("127.0.0.1:0", None)?;
        ensure!(servers[at].api != old);
        let members = eventually("the others know", PATIENCE, || {
            let members = servers[other].all_well(&[1, 2, 3])?;
            ensure!(members[at]["address"] == servers[at].api, "{members:?}");
            Ok(members)
        })?;
        ensure!(!members.iter().any(|one| one["address"] == old), "{members:?}");
        servers[at].write(&format!("moved-{moving}"))?;
        servers[other].has(&format!("moved-{moving}"))?;
    }
    Ok(())
}

#[test]
fn servers_whose_api_shares_the_gateways_port_are_a_group_by_it() -> Result<()> {
    let mut servers = three_by(|_, join| Server::spawned_as(Instance::empty()?, "gateway", None, join))?;
    for server in &servers {
        assert_eq!(server.api, server.instance.address("gateway")?);
    }
    // What comes back has to reach the others, and be reached, before it knows any route.
    let dead = place(servers[0].leader()?);
    let other = (dead + 1) % 3;
    servers[dead].kill()?;
    eventually("the others take writes", ELECTION, || servers[other].write("without"))
        .with_context(|| servers[other].log())?;
    servers[dead].again("gateway", None)?;
    servers[dead].has("without")?;
    servers[other].all_well(&[1, 2, 3])?;
    Ok(())
}

#[test]
fn a_dead_server_is_replaced_and_nobody_takes_away_the_last_majority() -> Result<()> {
    let mut servers = three()?;
    servers[0].write("before")?;
    servers[2].kill()?;
    let refused = servers[0].instance.refused("region remove 2")?;
    ensure!(refused.contains("no majority"), "{refused}");
    ensure!(servers[0].instance.refused("region remove 9")?.contains("server 9 does not belong"));
    let used = servers[0].token()?;
    servers[0].instance.run("region remove 3")?;
    // Its number is not given again.
    servers.push(Server::start(Some(&used))?);
    servers[0].all_well(&[1, 2, 4])?;
    servers[3].has("before")?;
    // The one that was removed is told so, and does not come back by itself.
    let api = servers[2].api.clone();
    servers[2].spawn(&api, None)?;
    let said = servers[2].ended()?;
    ensure!(said.contains("server 3 was removed from the region for good"), "{said}");
    ensure!(servers[0].members()?.len() == 3);
    // One that runs ends when it is removed, be it the one that leads.
    let (leader, asked) = match servers[1].leader()? {
        1 => (0, 1),
        2 => (1, 0),
        _ => (3, 0),
    };
    let id = [1, 2, 3, 4][leader];
    servers[asked].instance.run(&format!("region remove {id}"))?;
    let said = servers[leader].ended()?;
    ensure!(said.contains(&format!("server {id} was removed")), "{said}");
    servers[asked].write("two-left")?;
    let left: Vec<_> = servers[asked].members()?.iter().filter_map(|one| one["id"].as_u64()).collect();
    ensure!(left.len() == 2, "{left:?}");
    let other = *left.iter().find(|id| place(**id) != asked).context("another")?;
    servers[asked].instance.run(&format!("region remove {other}"))?;
    let refused = servers[asked].instance.refused(&format!("region remove {}", left[0] + left[1] - other))?;
    ensure!(refused.contains("the last one"), "{refused}");
    servers[asked].write("alone")?;
    Ok(())
}

/// What the API answers to a call between servers, by its gRPC status. It answers before it has read the request, which curl sometimes takes for a
/// broken stream.
fn peers_call(server: &Server, arguments: &[&str]) -> Result<String> {
    eventually("an answer", PATIENCE, || peers_called(server, arguments))
}

fn peers_called(server: &Server, arguments: &[&str]) -> Result<String> {
    let (ip, port) = server.api.rsplit_once(':').context("an address")?;
    let url = format!("https://api.hearth.internal:{port}/hearth.v1.Peers/Call");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--http2-prior-knowledge", "--max-time", "20", "-D", "-", "-o", "/dev/null", "--cacert"]);
    curl.arg(server.instance.path().join("ca.pem")).args(["--resolve", &format!("api.hearth.internal:{port}:{ip}")]);
    curl.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@-"]).args(arguments);
    let done = command::output(curl.arg(url), &[0; 5], command::LIMIT)?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let status = text.lines().find_map(|line| line.strip_prefix("grpc-status: ")).map(|code| code.trim().to_owned());
    status.with_context(|| format!("{text}{}", String::from_utf8_lossy(&done.stderr)))
}

/// A part of the client config, decoded into a file.
fn extract(server: &Server, field: &str, to: &Path) -> Result<()> {
    let config = std::fs::read_to_string(server.instance.path().join("client.yaml"))?;
    let line = config.lines().find_map(|line| line.trim().strip_prefix(&format!("{field}: "))).context("a field")?;
    let decoded = command::output(Command::new("base64").arg("-d"), line.as_bytes(), command::LIMIT)?;
    std::fs::File::create(to)?.write_all(&decoded.stdout)?;
    Ok(())
}

#[test]
fn who_is_no_server_of_the_region_gets_nowhere() -> Result<()> {
    let mut first = Server::start(None)?;
    let dir = tempfile::tempdir()?;
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    extract(&first, "client-certificate-data", &certificate)?;
    extract(&first, "client-key-data", &key)?;
    // 16: unauthenticated, 7: permission denied.
    ensure!(peers_call(&first, &[])? == "16");
    let admin = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    ensure!(peers_call(&first, &admin)? == "7");

    // A token is for what it is for, and for one.
    let joins = |token: &str, expected: &str| -> Result<()> {
        let mut server = Server::spawned(Instance::empty()?, Some(token))?;
        let said = server.ended()?;
        ensure!(said.contains(expected), "{expected}: {said}");
        ensure!(!server.instance.path().join("server").exists(), "nothing is half made");
        Ok(())
    };
    joins("nonsense", "not a join token")?;
    joins(first.instance.run("token create --owner alice")?.trim(), "for a device")?;
    let token = first.token()?;
    let mut second = Server::start(Some(&token))?;
    joins(&token, "used already")?;
    let tokens = first.instance.run("token ls")?;
    ensure!(tokens.contains("<server>") && tokens.contains("used by server 2"), "{tokens}");
    // A restart needs none, and takes the same one. Another region's is refused, and changes nothing.
    let elsewhere = Server::start(None)?;
    let foreign = elsewhere.token()?;
    for server in [&mut first, &mut second] {
        let api = server.api.clone();
        server.kill()?;
        server.spawn(&api, Some(&foreign))?;
        let said = server.ended()?;
        ensure!(said.contains("of another region than the token is for"), "{said}");
        server.spawn(&api, Some(&token))?;
    }
    first.answers()?;
    second.answers()?;
    first.all_well(&[1, 2])?;
    Ok(())
}

/// A device whose agent runs by itself; ended with the test.
struct Device {
    agent: Child,
    instance: Instance,
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Device {
    fn start(token: &str) -> Result<Self> {
        let instance = Instance::empty()?;
        command::succeed(
            instance.hearth(["join", token, "--name", "nas", "--owner", "alice", "--data-dir"]).arg(instance.path()),
        )?;
        instance.import_busybox()?;
        let log = std::fs::File::options().create(true).append(true).open(instance.path().join("agent.stderr"))?;
        let mut agent = instance.hearth(["agent", "--data-dir"]);
        agent.arg(instance.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Self { agent: agent.spawn()?, instance })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.instance.path().join("agent.stderr")).unwrap_or_default()
    }
}

/// Sessions at a server, by its own metrics.
fn sessions(server: &Server) -> Result<u64> {
    let text = server.instance.scrape("metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix("hearth_region_sessions ")).context("no such metric")?;
    Ok(line.trim().parse()?)
}

#[test]
fn devices_and_clients_move_on_when_the_leader_dies_and_nothing_is_said_of_silence() -> Result<()> {
    let mut servers = three()?;
    let token = servers[0].instance.run("token create --owner alice")?;
    let device = Device::start(token.trim())?;
    let logs =
        |servers: &[Server]| servers.iter().map(Server::log).chain([device.log()]).collect::<Vec<_>>().join("\n---\n");
    let ready = |server: &Server| server.instance.condition("node", "nas", "default", "Ready");
    eventually("the device is ready", PATIENCE, || {
        let condition = ready(&servers[0])?;
        ensure!(condition["status"] == "True", "{condition}");
        Ok(())
    })
    .with_context(|| logs(&servers))?;
    servers[0].instance.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: echo, namespace: alice}, \
         spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: busybox, args: [sh, -c, 'sleep 100000']}]}}",
    )?;
    servers[0]
        .instance
        .run("wait pod/echo -n alice --for=condition=Ready --timeout=60s")
        .with_context(|| logs(&servers))?;
    let events = |server: &Server| -> Result<Vec<Value>> {
        let all = server.instance.list("events", "default")?;
        Ok(all.into_iter().filter(|one| one["involvedObject"]["name"] == "nas").collect())
    };
    let (before, told) = (ready(&servers[0])?, events(&servers[0])?.len());
    // Clients know all servers, moments after the last one joined.
    for server in &servers {
        let config = server.instance.path().join("client.yaml");
        eventually("the client's configuration lists all", PATIENCE, || {
            let text = std::fs::read_to_string(&config)?;
            ensure!(servers.iter().all(|server| text.contains(&server.api)), "{text}");
            Ok(())
        })?;
    }
    for _ in 0..2 {
        let dead = place(servers[0].leader()?);
        let others = [(dead + 1) % 3, (dead + 2) % 3];
        servers[dead].kill()?;
        let begin = Instant::now();
        eventually("the device has a session again", ELECTION, || {
            let at: Result<Vec<_>> = others.iter().map(|at| sessions(&servers[*at])).collect();
            ensure!(at?.iter().sum::<u64>() == 1);
            Ok(())
        })
        .with_context(|| logs(&servers))?;
        ensure!(begin.elapsed() < SESSION_AGAIN, "{:?}", begin.elapsed());
        // A client that knows the dead server first goes to another one by itself.
        servers[dead].instance.run("get nodes")?;
        servers[dead].write(&format!("through-another-{dead}"))?;
        // Through each: the one that has the session, and the one that asks it.
        for at in others {
            let mut exec =
                servers[at].instance.hearth(["exec", "echo", "-n", "alice", "--", "/bin/busybox", "echo", "reached"]);
            let said = command::succeed(&mut exec).with_context(|| logs(&servers))?;
            ensure!(said.trim() == "reached", "{said}");
        }
        ensure!(ready(&servers[others[0]])? == before, "the device was never silent");
        let api = servers[dead].api.clone();
        servers[dead].again(&api, None)?;
        servers[others[0]].all_well(&[1, 2, 3])?;
    }
    ensure!(events(&servers[0])?.len() == told, "{:?}", events(&servers[0])?);
    Ok(())
}

#[test]
fn every_gateway_answers_for_every_owner_and_the_others_do_when_one_dies() -> Result<()> {
    const HOST: &str = "web.alice.hearth.internal";
    let mut servers = three()?;
    let token = servers[0].instance.run("token create --owner alice")?;
    let mut device = Device::start(token.trim())?;
    servers[0].instance.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: alice, labels: {{app: web}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: busybox, \
         args: [sh, -c, 'mkdir -p /tmp/w; echo reached > /tmp/w/index.html; exec busybox httpd -f -p 8080 -h /tmp/w'], \
         volumeMounts: [{{name: tmp, mountPath: /tmp}}]}}], volumes: [{{name: tmp, emptyDir: {{}}}}]}}}}\n---\n\
         {{apiVersion: hearth.dev/v1alpha1, kind: Route, metadata: {{name: web, namespace: alice}}, \
         spec: {{hostname: {HOST}, target: {{selector: {{app: web}}, port: 8080}}}}}}"
    ))?;
    let logs =
        |servers: &[Server]| servers.iter().map(Server::log).chain([device.log()]).collect::<Vec<_>>().join("\n---\n");
    let reached = |server: &Server| -> Result<()> {
        ensure!(server.instance.fetch(HOST, "/")?.contains("reached"));
        Ok(())
    };
    for server in &servers {
        eventually("each gateway answers", PATIENCE, || reached(server)).with_context(|| logs(&servers))?;
    }
    // All at once, each with tunnels of its own.
    std::thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> = servers
            .iter()
            .map(|server| scope.spawn(move || (0..10).try_for_each(|_| server.instance.fetch(HOST, "/").map(drop))))
            .collect();
        callers.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?)
    })
    .with_context(|| logs(&servers))?;
    let dead = place(servers[0].leader()?);
    servers[dead].kill()?;
    for at in [(dead + 1) % 3, (dead + 2) % 3] {
        eventually("the others go on", ELECTION, || reached(&servers[at])).with_context(|| logs(&servers))?;
    }
    // The device goes away: its name looks like one that nobody has, at once.
    let alive = &servers[(dead + 1) % 3];
    device.agent.kill()?;
    device.agent.wait()?;
    let plain = |host: &str| -> Result<String> {
        let gateway = alive.instance.address("gateway")?;
        let text = command::run("curl", ["-sS", "-i", "-H", &format!("Host: {host}"), &format!("http://{gateway}/")])?;
        Ok(text.lines().filter(|line| !line.starts_with("Date: ")).collect::<Vec<_>>().join("\n"))
    };
    eventually("it is told from nothing", PATIENCE, || {
        let begun = Instant::now();
        let said = [HOST, "nobody.alice.hearth.internal"]
            .map(|host| command::fail(&mut alive.instance.curl(host, "/", &[])?).map(|said| said.replace(host, "")));
        let [away, unknown] = said;
        let (away, unknown) = (away?, unknown?);
        ensure!(away == unknown && away.contains("unrecognized name"), "{away}, not {unknown}");
        ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let (away, unknown) = (plain(HOST)?, plain("nobody.alice.hearth.internal")?);
        ensure!(away == unknown && away.starts_with("HTTP/1.1 404 "), "{away}, not {unknown}");
        Ok(())
    })
}
