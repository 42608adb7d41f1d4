//! What a server is in its region: how it joins, what it remembers of that, and how it sees to it that it belongs to the group.
//!
//! ```text
//! server/member.json    its number, its region, and the servers that it knew last; a region's first server has none until it knows others
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use hearth_api::{CertificateAuthority, PeerChannels, server_name};
use hearth_client::{device::DeviceIdentity, servers};
use hearth_raft::Keys;
use hearth_types::{
    Reason,
    group::{Group, MAX_SERVERS, Member, Server},
    token::JoinToken,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::composition::tunnel_seed;
use crate::{
    data_dir::{DataDir, write_atomically},
    region_files,
};

/// The number of a region's first server.
pub(super) const FIRST_SERVER: u64 = 1;
/// The version of `member.json`.
const VERSION: u32 = 1;
/// The folder in a data directory in which a server that joins is prepared: it becomes one in a single step.
const PREPARED: &str = "server.joining";
/// The pause before the region is asked again; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while this server does not belong to the group, or is looked for at another address.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the servers are looked at to be remembered: a server that is started at another address, while the others look for it at the one
/// before, knows only by that where they are.
const REFRESH: Duration = Duration::from_secs(2);
/// How long a leader is waited for before the servers are asked that are known from before.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(3);

/// What a server remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Own {
    version: u32,
    /// Its number.
    pub(super) id: u64,
    /// Its region's name.
    pub(super) region: String,
    /// The region's zone.
    pub(super) zone: String,
    /// Whether it belonged to the group once: it is not there by itself again once it was removed.
    admitted: bool,
    /// The servers of the region as it knew them last, itself among them.
    servers: Vec<Server>,
}

fn path(data: &DataDir) -> PathBuf {
    data.server().join("member.json")
}

impl Own {
    /// Reads what is remembered; `None` of a server that never wrote it: its region's first one, or a new one.
    fn load(data: &DataDir) -> Result<Option<Self>> {
        let path = path(data);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let damaged = || format!("{}: not what a server wrote; restore it from a backup of the folder", path.display());
        let value: serde_json::Value = serde_json::from_slice(&bytes).with_context(damaged)?;
        if value["version"] != VERSION {
            let shown = path.display();
            bail!(
                "{shown}: of version {}; this release reads {VERSION}: use the release that wrote it",
                value["version"]
            );
        }
        serde_json::from_value(value).with_context(damaged).map(Some)
    }

    fn write(&self, folder: &Path) -> Result<()> {
        write_atomically(&folder.join("member.json"), &serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// Whether the store begins a region, where there is none yet; else it waits to be admitted to one.
    pub(super) fn begins_region(&self) -> bool {
        self.id == FIRST_SERVER
    }

    /// What the region is called, as far as this data directory says.
    fn agrees(&self, region: Option<&str>, zone: Option<&str>) -> Result<()> {
        for (flag, what, is, wanted) in
            [("--region", "region", &self.region, region), ("--zone", "zone", &self.zone, zone)]
        {
            if let Some(wanted) = wanted.filter(|wanted| wanted != is) {
                bail!(
                    "{flag} {wanted}: this server's {what} is {is:?} and cannot be changed; leave {flag} away, or use another --data-dir"
                );
            }
        }
        Ok(())
    }
}

/// What the command line says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) join: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) zone: Option<&'a str>,
    /// Where this server's API answers.
    pub(super) address: &'a str,
}

/// The region of who names none.
const DEFAULT_REGION: &str = "home";
/// The zone of who names none.
const DEFAULT_ZONE: &str = "hearth.internal";

/// Finds out what this server is. The first time with a token it joins; with data of its own it needs none, and a token of the same region is
/// passed over.
pub(super) async fn own(data: &DataDir, wanted: Wanted<'_>) -> Result<Own> {
    let token = wanted.join.map(str::parse::<JoinToken>).transpose().context("--join")?;
    if let Some(own) = Own::load(data)? {
        own.agrees(wanted.region, wanted.zone)?;
        if let Some(token) = &token {
            same_region(data, token)?;
        }
        return Ok(own);
    }
    if let Some(token) = token {
        if !exists(&data.server())? || fs::remove_dir(data.server()).is_ok() {
            return join(data, &token, wanted).await;
        }
        // A region's first server that is given a token of its own region.
        same_region(data, &token)?;
    }
    let zone = match fs::read_to_string(data.server().join("zone")) {
        Ok(zone) => zone.trim().to_owned(),
        Err(_) => wanted.zone.unwrap_or(DEFAULT_ZONE).to_owned(),
    };
    let region = wanted.region.unwrap_or(DEFAULT_REGION).to_owned();
    let own = Own { version: VERSION, id: FIRST_SERVER, region, zone, admitted: true, servers: Vec::new() };
    own.agrees(None, wanted.zone)?;
    Ok(own)
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| format!("cannot look at {}", path.display()))
}

/// Refuses the token of another region than the one whose data is here.
fn same_region(data: &DataDir, token: &JoinToken) -> Result<()> {
    let pem = fs::read(data.server().join("ca/ca.pem")).unwrap_or_default();
    let ca = servers::ca_hash(&pem);
    ensure!(
        ca == Some(token.ca_hash),
        "--join: {} holds the data of another region than the token is for. Nothing was changed. Use an empty --data-dir to join that region, or leave \
         --join away to go on with this one",
        data.server().display()
    );
    Ok(())
}

/// Joins, and makes the server's folder, whole and in one step. The same again where that was interrupted.
async fn join(data: &DataDir, token: &JoinToken, wanted: Wanted<'_>) -> Result<Own> {
    let folder = data.root().join(PREPARED);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // The key first, and on disk: the token is good for it alone.
    let seed = tunnel_seed(&folder.join("tunnel.key"))?;
    let identity = DeviceIdentity::from_seed(&seed)?;
    tracing::info!(addresses = ?token.addresses, "joining a region");
    let answer = servers::join(token, &identity, wanted.address)
        .await
        .map_err(|status| anyhow::anyhow!("cannot join the region: {}", status.message))?;
    ensure!(
        server_name(&answer.zone) == token.server_name,
        "the region's answer is of the zone {:?}, and the token is not",
        answer.zone
    );
    ensure!(answer.id > FIRST_SERVER && answer.servers.len() <= MAX_SERVERS, "the region's answer cannot be right");
    let servers = answer.servers.into_iter().map(|one| Server { id: one.id, address: one.address }).collect();
    let (id, region, zone) = (answer.id, answer.region, answer.zone);
    let own = Own { version: VERSION, id, region, zone, admitted: false, servers };
    own.agrees(wanted.region, wanted.zone)?;
    let ca_certificate = String::from_utf8(answer.ca_pem.to_vec()).context("the region's CA is not text")?;
    let keys = Keys { ca_key: answer.ca_key_pem, ca_certificate, tunnel_key: Some(seed.to_vec()) };
    // Of a try that was interrupted.
    match fs::remove_dir_all(folder.join("ca")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.join("ca").display()));
        }
        _ => {}
    }
    region_files::write(&folder, &own.zone, &keys)?;
    own.write(&folder)?;
    let become_server = || {
        fs::rename(&folder, data.server())?;
        fs::File::open(data.root())?.sync_all()
    };
    become_server().with_context(|| format!("cannot rename {} to {}", folder.display(), data.server().display()))?;
    tracing::info!(server = own.id, region = %own.region, zone = %own.zone, "joined; now to be admitted");
    Ok(own)
}

/// Sees to it that this server belongs to the group at its address, and remembers who else does. Fails once it was removed; ends when told to.
pub(super) async fn keep(
    data: DataDir,
    mut own: Own,
    address: String,
    group: Arc<dyn Group>,
    channels: PeerChannels,
    shutdown: CancellationToken,
) -> Result<()> {
    let me = Server { id: own.id, address };
    let keeping = async {
        let (mut pause, mut said) = (FIRST_PAUSE, String::new());
        loop {
            let problem = match step(&data, &mut own, &me, group.as_ref(), &channels).await? {
                Step::Belongs => {
                    (pause, said) = (FIRST_PAUSE, String::new());
                    tokio::time::sleep(REFRESH).await;
                    continue;
                }
                Step::Changed => continue,
                Step::Waits(why) => why,
            };
            if problem != said {
                tracing::info!(server = me.id, address = %me.address, "waiting to belong to the region's group: {problem}");
                said = problem;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = channels.removed() => bail!(removed(&data, me.id)),
        ended = keeping => ended,
    }
}

fn removed(data: &DataDir, id: u64) -> String {
    format!(
        "server {id} was removed from the region for good. Its data in {} is of no more use; to add this machine again use an empty --data-dir and a new \
         token (`hearth token create --server`)",
        data.server().display()
    )
}

/// How far this server is.
enum Step {
    /// It belongs, at this address.
    Belongs,
    /// Something was done: look again.
    Changed,
    /// Not yet, and why.
    Waits(String),
}

async fn step(data: &DataDir, own: &mut Own, me: &Server, group: &dyn Group, channels: &PeerChannels) -> Result<Step> {
    let members = match tokio::time::timeout(MEMBERS_TIMEOUT, group.members()).await {
        Ok(Ok(members)) => Ok(members),
        Ok(Err(status)) => Err(status.message),
        Err(_) => Err("no server that leads answers".to_owned()),
    };
    match members {
        Ok(members) if members.iter().any(|member| member.server == *me) => {
            remember(data, own, &members)?;
            Ok(Step::Belongs)
        }
        Ok(members) if members.iter().any(|member| member.server.id == me.id) => match group.admit(me.clone()).await {
            Ok(()) => {
                tracing::info!(address = %me.address, "the other servers know this one's new address");
                Ok(Step::Changed)
            }
            Err(status) => Ok(Step::Waits(status.message)),
        },
        // Said by the leader, who knows.
        Ok(members) if own.admitted && !members.is_empty() => bail!(removed(data, me.id)),
        Ok(_) => ask_around(own, me, channels).await,
        // Perhaps they look for this one where it was before.
        Err(_) if !own.admitted || !own.servers.contains(me) && own.servers.len() > 1 => {
            ask_around(own, me, channels).await
        }
        Err(why) => Ok(Step::Waits(why)),
    }
}

/// Asks the servers that are known from before, one after another.
async fn ask_around(own: &Own, me: &Server, channels: &PeerChannels) -> Result<Step> {
    let mut problem = "no other server is known".to_owned();
    for server in own.servers.iter().filter(|server| server.id != me.id) {
        match channels.admit(server, &me.address).await {
            Ok(()) => {
                tracing::info!(server = me.id, address = %me.address, "this server belongs to the region's group");
                return Ok(Step::Changed);
            }
            // An answer, which another server would give as well.
            Err(status) if status.reason != Reason::ServiceUnavailable && status.reason != Reason::Timeout => {
                return Ok(Step::Waits(status.message));
            }
            Err(status) => problem = format!("{server}: {}", status.message),
        }
    }
    Ok(Step::Waits(problem))
}

fn remember(data: &DataDir, own: &mut Own, members: &[Member]) -> Result<()> {
    let servers: Vec<_> = members.iter().map(|member| member.server.clone()).collect();
    // A region's only server has nobody to remember.
    let alone = own.id == FIRST_SERVER && own.servers.is_empty() && servers.len() == 1;
    if alone || (own.admitted && own.servers == servers) {
        return Ok(());
    }
    (own.admitted, own.servers) = (true, servers);
    own.write(&data.server())
}

/// The CA of a server: made anew only by the first one of a new region.
pub(super) fn authority(
    data: &DataDir,
    own: &Own,
    clock: Arc<dyn hearth_types::Clock>,
) -> Result<Arc<CertificateAuthority>> {
    let has_data = hearth_raft::exists(&data.raft()) || !own.begins_region();
    Ok(Arc::new(CertificateAuthority::for_region(&data.server().join("ca"), &own.zone, clock, has_data)?))
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, sync::Mutex};

    use futures_util::{Stream, stream};
    use hearth_types::{
        BoxFuture, Status,
        group::{Leadership, MemberRole},
    };

    use super::{super::SystemClock, *};

    const ADDRESS: &str = "192.0.2.2:7443";

    fn wanted<'a>(region: Option<&'a str>, zone: Option<&'a str>) -> Wanted<'a> {
        Wanted { join: None, region, zone, address: ADDRESS }
    }

    fn joined(id: u64) -> Own {
        let servers = vec![Server { id: 1, address: "192.0.2.1:7443".into() }];
        Own { version: VERSION, id, region: "office".into(), zone: "office.test".into(), admitted: false, servers }
    }

    fn data() -> (tempfile::TempDir, DataDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::create(dir.path()).expect("a data directory");
        (dir, data)
    }

    #[tokio::test]
    async fn a_server_stays_what_it_is() {
        let (_dir, data) = data();
        let first = own(&data, wanted(None, None)).await.expect("a new region");
        assert_eq!((first.id, first.region.as_str(), first.zone.as_str()), (1, "home", "hearth.internal"));
        assert!(first.begins_region() && !data.server().exists(), "nothing is written by that");
        fs::create_dir(data.server()).expect("made");
        fs::write(data.server().join("zone"), "old.test\n").expect("written");
        assert_eq!(own(&data, wanted(None, None)).await.expect("as it was").zone, "old.test");
        own(&data, wanted(None, Some("new.test"))).await.expect_err("a zone is for ever");

        joined(3).write(&data.server()).expect("written");
        let read = own(&data, wanted(Some("office"), None)).await.expect("read back");
        assert!(read == joined(3) && !read.begins_region());
        let error = own(&data, wanted(Some("home"), None)).await.expect_err("another region").to_string();
        assert!(error.contains("--region home") && error.contains("\"office\""), "{error}");
        let clock = Arc::new(SystemClock);
        let error = authority(&data, &read, clock).expect_err("the CA is gone").to_string();
        assert!(error.contains("its CA is missing"), "{error}");
        for (bytes, text) in [(r#"{"version": 2}"#, "of version 2"), ("{", "not what a server wrote")] {
            fs::write(data.server().join("member.json"), bytes).expect("written");
            let error = own(&data, wanted(None, None)).await.expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    /// What the group says of its members.
    struct Says(Mutex<Result<Vec<Server>, Status>>);

    impl Group for Says {
        fn id(&self) -> u64 {
            3
        }

        fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, Status>> {
            let member = |server| Member { server, role: MemberRole::Voter, leads: false, behind: None, silent: None };
            let said = self.0.lock().expect("no panic").clone().map(|all| all.into_iter().map(member).collect());
            Box::pin(std::future::ready(said))
        }

        fn admit(&self, server: Server) -> BoxFuture<'_, Result<(), Status>> {
            let mut said = self.0.lock().expect("no panic");
            if let Ok(members) = &mut *said {
                members.retain(|one| one.id != server.id);
                members.push(server);
            }
            Box::pin(std::future::ready(Ok(())))
        }

        fn remove(&self, _: u64) -> BoxFuture<'_, Result<(), Status>> {
            unreachable!("nobody asks")
        }

        fn transfer_leader(&self, _: Option<u64>) -> BoxFuture<'_, Result<Server, Status>> {
            unreachable!("nobody asks")
        }

        fn leadership(&self) -> Leadership {
            Leadership::default()
        }

        fn watch_leadership(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>> {
            Box::pin(stream::pending())
        }
    }

    #[tokio::test]
    async fn a_server_asks_to_belong_moves_and_knows_when_it_was_removed() {
        let (_dir, data) = data();
        fs::create_dir(data.server()).expect("made");
        let ca = CertificateAuthority::load_or_create(&data.server().join("ca"), "office.test", Arc::new(SystemClock));
        let channels = PeerChannels::new(&Arc::new(ca.expect("a CA")), 3, Arc::new(SystemClock)).expect("channels");
        // Nobody answers at the address that is known: a port that was just let go.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a port");
        let other = Server { id: 1, address: gone.to_string() };
        let mut own = Own { servers: vec![other.clone()], ..joined(3) };
        let me = Server { id: 3, address: ADDRESS.into() };
        let says = Says(Mutex::new(Err(Status::unavailable("no leader"))));
        let step_now = async |own: &mut Own| step(&data, own, &me, &says, &channels).await;
        let waits = |step: Result<Step>, text: &str| match step {
            Ok(Step::Waits(why)) => assert!(why.contains(text), "{why}"),
            Ok(_) => panic!("it waits: {text}"),
            Err(error) => panic!("{error}"),
        };
        waits(step_now(&mut own).await, "server 1 at");
        // There is a group, and this one is not in it yet.
        *says.0.lock().expect("no panic") = Ok(vec![other.clone()]);
        waits(step_now(&mut own).await, "server 1 at");
        // It is, where it was before.
        let old = Server { id: 3, address: "192.0.2.99:7443".into() };
        *says.0.lock().expect("no panic") = Ok(vec![other.clone(), old]);
        assert!(matches!(step_now(&mut own).await, Ok(Step::Changed)));
        assert!(matches!(step_now(&mut own).await, Ok(Step::Belongs)));
        let read = Own::load(&data).expect("read").expect("written");
        assert!(read == own && own.admitted && own.servers == [other.clone(), me.clone()]);
        // Without a leader, and at the address that all know, there is nothing to ask for.
        *says.0.lock().expect("no panic") = Err(Status::unavailable("no leader"));
        waits(step_now(&mut own).await, "no leader");
        *says.0.lock().expect("no panic") = Ok(vec![other]);
        let error = step_now(&mut own).await.err().expect("it was removed").to_string();
        assert!(error.contains("server 3 was removed from the region for good"), "{error}");
    }
}
