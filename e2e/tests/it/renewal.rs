//! An authority that says when to renew (ARI, RFC 9773) and how often to order. Debian's Pebble does neither: Debian's Caddy stands before it,
//! says in its directory that there is `renewalInfo`, answers that from files, and refuses new orders while a file is there.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hearth_e2e::{
    command::{self, Running},
    eventually, free_port,
    instance::Instance,
};
use serde_json::{Value, json};

use crate::acme::{Pebble, serve, start_caddy};

/// What the authority says of a new order while it takes none.
const LIMIT: &str = "too many certificates already issued";

/// The authority: files in a folder, and Pebble for all else.
struct Front {
    folder: tempfile::TempDir,
    port: u16,
    _caddy: Running,
}

impl Front {
    fn start(pebble: &Pebble) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let behind = pebble.directory();
        let behind = behind.strip_suffix("/dir").context("a directory")?;
        let own = format!("https://localhost:{port}");
        let mut directory: Value = serde_json::from_str(&pebble.read_directory()?.replace(behind, &own))?;
        directory["renewalInfo"] = json!(format!("{own}/renewal-info"));
        let files = folder.path().join("files");
        std::fs::create_dir_all(files.join("renewal-info"))?;
        std::fs::write(files.join("dir"), directory.to_string())?;
        let order = directory["newOrder"].as_str().and_then(|url| url.strip_prefix(&own)).context("newOrder")?;
        let door = pebble.door.parent().context("a folder")?.display().to_string();
        let problem =
            json!({"type": "urn:ietf:params:acme:error:rateLimited", "status": 429, "detail": LIMIT}).to_string();
        std::fs::write(
            folder.path().join("Caddyfile"),
            format!(
                "{{
	admin off
	skip_install_trust
	auto_https disable_redirects
	storage file_system {storage}
}}
{own} {{
	tls {door}/door.pem {door}/door.key
	root * {files}
	@limited {{
		path {order}
		file limited
	}}
	handle @limited {{
		header Content-Type application/problem+json
		header Retry-After 6
		respond `{problem}` 429
	}}
	handle /dir {{
		header Content-Type application/json
		file_server
	}}
	handle /renewal-info/* {{
		header Content-Type application/json
		header Retry-After 1
		try_files {{path}} /renewal-info/default
		file_server
	}}
	handle {{
		reverse_proxy {behind} {{
			transport http {{
				tls_trusted_ca_certs {root}
			}}
		}}
	}}
}}
",
                storage = folder.path().join("data").display(),
                files = files.display(),
                root = pebble.door.display(),
            ),
        )?;
        let caddy = start_caddy(folder.path())?;
        let front = Self { folder, port, _caddy: caddy };
        eventually("Caddy answers", command::LIMIT, || {
            let mut curl = Command::new("curl");
            command::succeed(curl.args(["-sS", "--fail", "--cacert"]).arg(&pebble.door).arg(front.directory()))
        })?;
        Ok(front)
    }

    fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// Suggests to renew a certificate in a window, from and to so many minutes from now.
    fn suggest(&self, id: &str, from: i64, to: i64) -> Result<()> {
        let at = |minutes: i64| {
            let mut date = Command::new("date");
            let text = command::succeed(date.args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("{minutes} minutes")]))?;
            Ok::<_, anyhow::Error>(text.trim().to_owned())
        };
        let window = json!({"suggestedWindow": {"start": at(from)?, "end": at(to)?}});
        let new = self.file("new");
        std::fs::write(&new, window.to_string())?;
        Ok(std::fs::rename(new, self.file("renewal-info").join(id))?)
    }
}

/// A certificate's name in `renewalInfo` (RFC 9773 section 4.1), as openssl reads it.
fn id_of(pem: &str, folder: &Path) -> Result<String> {
    let file = folder.join("leaf.pem");
    std::fs::write(&file, pem)?;
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-serial", "-ext", "authorityKeyIdentifier", "-in"]).arg(&file);
    let text = command::succeed(&mut openssl)?;
    let bytes = |hex: &str| {
        let digits: Vec<char> = hex.chars().filter(char::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|two| u8::from_str_radix(&two.iter().collect::<String>(), 16))
            .collect::<Result<Vec<u8>, _>>()
    };
    let serial = bytes(text.lines().find_map(|line| line.strip_prefix("serial=")).context("a serial number")?)?;
    // As in DER: what begins with a bit has a zero before it.
    let serial = if serial[0] >= 0x80 { [&[0][..], &serial].concat() } else { serial };
    let key = text.lines().last().context("a key's id")?;
    let key = bytes(key.rsplit_once("keyid:").map_or(key, |(_, key)| key))?;
    Ok(format!("{}.{}", URL_SAFE_NO_PAD.encode(key), URL_SAFE_NO_PAD.encode(serial)))
}

#[test]
fn a_certificate_is_renewed_when_its_authority_suggests_it_and_not_before_it_takes_orders() -> Result<()> {
    let instance = Instance::up("none")?;
    serve(&instance)?;
    // Of itself, a certificate of an hour would be renewed after forty minutes.
    let pebble = Pebble::start(&instance.address("dns")?, 3600)?;
    let front = Front::start(&pebble)?;
    front.suggest("default", 50, 55)?;
    instance.run(&format!("region acme {}", pebble.account(&instance, &front.directory())?))?;
    let status = || Ok::<_, anyhow::Error>(instance.get("certificate", "nas", "alice")?["status"].take());
    let in_minutes = |from: i64, to: i64| -> Result<(String, String)> {
        front.suggest("read", from, to)?;
        let window: Value = serde_json::from_str(&std::fs::read_to_string(front.file("renewal-info/read"))?)?;
        let at = |end: &str| window["suggestedWindow"][end].as_str().context("a time").map(str::to_owned);
        Ok((at("start")?, at("end")?))
    };
    // It is issued, and is to be renewed when the authority says.
    let first = instance.eventually("the suggested time is kept", || {
        let status = status()?;
        let (from, to) = in_minutes(45, 56)?;
        let at = status["renewalTime"].as_str().context("no time yet")?;
        ensure!(from.as_str() < at && at < to.as_str(), "{from} {at} {to}");
        Ok(status)
    })?;
    // The authority wants it replaced at once: it is, though it has most of its life before it.
    let pem = |status: &Value| status["certificate"].as_str().map(str::to_owned).context("a certificate");
    front.suggest(&id_of(&pem(&first)?, instance.path())?, -20, -10)?;
    let second = instance.eventually("it is renewed", || {
        let status = status()?;
        ensure!(status["issued"][0]["spki"] != first["issued"][0]["spki"], "{status}");
        ensure!(status["issued"][0]["renewal"] == true, "{status}");
        Ok(status)
    })?;
    // Again, and now it takes no orders: what there is stays, and nobody asks before the time that it says.
    std::fs::write(front.file("limited"), "")?;
    front.suggest(&id_of(&pem(&second)?, instance.path())?, -20, -10)?;
    let held = instance.eventually("it is told of the limit", || {
        let status = status()?;
        let condition = status["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == "Issuing");
        let condition = condition.context("no condition yet")?;
        ensure!(
            condition["reason"] == "RateLimited" && condition["message"].to_string().contains(LIMIT),
            "{condition}"
        );
        Ok(status)
    })?;
    ensure!(held["certificate"] == second["certificate"] && held["nextTry"].is_string(), "{held}");
    std::fs::remove_file(front.file("limited"))?;
    let third = instance.eventually("it is renewed once it may", || {
        let status = status()?;
        ensure!(status["issued"][0]["spki"] != second["issued"][0]["spki"], "{status}");
        Ok(status)
    })?;
    ensure!(third.get("failures").is_none() && third["issued"][0]["renewal"] == true, "{third}");
    ensure!(third["issued"][0]["time"].as_str() >= held["nextTry"].as_str(), "not before: {held} {third}");
    Ok(())
}
