//! The example apps that come with the binary: installed the first time, and waited for.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, pin_mut};
use hearth_client::WriteOptions;
use hearth_image::{ImageStore, ImportOptions};
use hearth_types::condition;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    context::{Context, Selection, refusal},
    data_dir::{DataDir, ServerReport, write_atomically},
    follow::{self, Change},
    sources, target,
    verbs::wait,
};

/// The folder beside the binary that holds the examples.
const FOLDER: &str = "hearth-examples";
/// How long an example may take to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// The pause between requests while the first one is not answered yet.
const RETRY: Duration = Duration::from_millis(20);

/// An example on disk.
pub(super) struct Example {
    name: String,
    folder: PathBuf,
}

/// Looks an example up; `none` is none.
pub(super) fn find(name: &str) -> Result<Option<Example>> {
    if name == "none" {
        return Ok(None);
    }
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let all = program.parent().map(|parent| parent.join(FOLDER)).unwrap_or_default();
    let folder = all.join(name);
    if name.contains('/') || !folder.join("install.yaml").exists() {
        let known: Vec<_> = fs::read_dir(&all)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        let known = if known.is_empty() {
            "there are none: `make build` makes them".into()
        } else {
            format!("there is {}", known.join(", "))
        };
        bail!("no example {name:?} in {} ({known}); --example none starts an empty region", all.display());
    }
    Ok(Some(Example { name: name.to_owned(), folder }))
}

/// An address that can be dialled from this machine, where a server listens on all of them.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Installs the example unless it was installed before, and waits until everything answers. Returns the
/// example's URL; `None` where there is no example, or its owner deleted it.
pub(super) async fn install(
    context: &Context,
    data: &DataDir,
    server: &ServerReport,
    example: Option<&Example>,
    say: &mut impl FnMut(&str),
) -> Result<Option<String>> {
    let Some(example) = example else {
        wait_device(context, data, say).await?;
        return Ok(None);
    };
    let mut installed: BTreeSet<String> =
        fs::read(data.examples()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if !installed.contains(&example.name) {
        apply(context, data, example, say).await?;
        installed.insert(example.name.clone());
        write_atomically(&data.examples(), &serde_json::to_vec(&installed)?, 0o644)?;
    }
    let name = example.name.as_str();
    let info = target::kind("installs")?;
    let key = context.key(info, name);
    if context.client()?.get(&key).await.is_err_and(|status| status.reason == hearth_types::Reason::NotFound) {
        say(&format!("the example {name} was deleted and stays so"));
        wait_device(context, data, say).await?;
        return Ok(None);
    }
    let waiting = wait_install(context, name, say);
    let hostname = tokio::time::timeout(READY_TIMEOUT, waiting).await.with_context(|| {
        format!("{name} is not ready after {} s; see `hearth describe install {name}`", READY_TIMEOUT.as_secs())
    })??;
    probe(data, server, &hostname).await?;
    say(&format!("{hostname} answers"));
    Ok(Some(format!("https://{hostname}:{}/", server.gateway.port())))
}

async fn apply(context: &Context, data: &DataDir, example: &Example, say: &mut impl FnMut(&str)) -> Result<()> {
    let (images, archive) = (data.images(), example.folder.join("image.tar"));
    let import = move || -> Result<_> { Ok(ImageStore::open(&images)?.import(&archive, &ImportOptions::default())?) };
    for record in tokio::task::spawn_blocking(import).await.context("the import ended")?? {
        say(&format!("imported {} ({})", record.reference, record.platform));
    }
    for file in ["app.yaml", "install.yaml"] {
        let path = example.folder.join(file).display().to_string();
        for mut document in sources::read(&[path], false, context.namespace())? {
            // The example belongs to whoever `up` is for.
            if document.value["kind"] == "Install" {
                document.value["metadata"]["namespace"] = context.namespace().into();
            }
            let written = context
                .client()?
                .apply(&document.value, &WriteOptions::default())
                .await
                .map_err(|status| refusal(&status))?;
            say(&format!("applied {}", written.object.key()));
        }
    }
    Ok(())
}

async fn wait_device(context: &Context, data: &DataDir, say: &mut impl FnMut(&str)) -> Result<()> {
    let name = super::status::now(data)["device"].as_str().unwrap_or_default().to_owned();
    let awaited = wait::Awaited::parse("condition=Connected")?;
    wait::until(context, target::kind("devices")?, "", Some((&name, None)), &awaited, READY_TIMEOUT).await?;
    say(&format!("device {name} is connected"));
    Ok(())
}

/// Follows the Install until it is ready, telling each step; returns its hostname.
async fn wait_install(context: &Context, name: &str, say: &mut impl FnMut(&str)) -> Result<String> {
    let info = target::kind("installs")?;
    let fields = format!("metadata.name={name}");
    let selection = Selection { fields: &fields, ..Selection::default() };
    let changes = follow::anew(context.source(info, context.namespace(), &selection)?, false);
    pin_mut!(changes);
    let mut told = String::new();
    while let Some(change) = changes.next().await {
        let (Change::Added(object) | Change::Modified(object)) = change? else { continue };
        let value = object.value();
        let Some(ready) = condition::get(&value, "Ready") else { continue };
        let text =
            format!("{name}: {}{}{}", ready.reason, if ready.message.is_empty() { "" } else { ": " }, ready.message);
        if text != told {
            say(&text);
            told = text;
        }
        let hostname = value["status"]["hostname"].as_str();
        if let (condition::Truth::True, Some(hostname)) = (ready.status, hostname) {
            return Ok(hostname.to_owned());
        }
    }
    bail!("the region ended the watch of {name}")
}

/// Makes the request that a user would make: through the gateway, by name, trusting the region's CA alone.
async fn probe(data: &DataDir, server: &ServerReport, hostname: &str) -> Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(data.ca()).context("cannot read the region's CA")?)?;
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let gateway = reachable(server.gateway);
    let name = ServerName::try_from(hostname.to_owned())?;
    let mut last = anyhow::anyhow!("not tried");
    let trying = async {
        loop {
            match request(&connector, gateway, &name, hostname).await {
                Ok(status) if status < 500 => return,
                Ok(status) => last = anyhow::anyhow!("it answers with status {status}"),
                Err(error) => last = error,
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let answered = tokio::time::timeout(READY_TIMEOUT, trying).await;
    if answered.is_err() {
        return Err(last.context(format!("https://{hostname}/ does not answer through the gateway at {gateway}")));
    }
    Ok(())
}

async fn request(
    connector: &tokio_rustls::TlsConnector,
    gateway: SocketAddr,
    name: &ServerName<'static>,
    hostname: &str,
) -> Result<u16> {
    let stream = TcpStream::connect(gateway).await?;
    let mut stream = connector.connect(name.clone(), stream).await?;
    let text = format!("GET / HTTP/1.1\r\nHost: {hostname}\r\nUser-Agent: hearth-up\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await?;
    // "HTTP/1.1 200"
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    let code = std::str::from_utf8(&line[9..])?.trim();
    code.parse().with_context(|| format!("not an HTTP status: {code:?}"))
}
