//! The client of people's tools.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_core::Stream;
use futures_util::StreamExt as _;
use hearth_proto::{MAX_MESSAGE_BYTES, v1};
use hearth_types::{
    GroupKind, Object, ObjectKey, RequestId, Revision, Status, Uid,
    store::{ListPage, WatchEvent},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tonic::transport::Channel;

use crate::{
    config::{Config, ConfigError, Resolved},
    connect, convert,
    failover::{Again, Servers},
};

/// How long one request may take before its answer begins.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Objects on a page when a client lists everything: small enough that the first lines come at once.
const PAGE: u32 = 500;

/// What a server streams. Ends after its first error.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration lacks something.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate or key in it cannot be used.
    #[error("client configuration: {what}: {why}")]
    Credentials {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The channel cannot be made.
    #[error("cannot make a channel to the region")]
    Channel(#[from] tonic::transport::Error),
}

/// Which objects: of a kind, in one namespace or in all, by selectors in their text form.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The kind.
    pub kind: GroupKind,
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// As `app=web,tier!=front`; empty for all.
    pub labels: String,
    /// As `status.phase=Running`; empty for all.
    pub fields: String,
}

impl Selection {
    /// Every object of a kind.
    pub fn all(kind: GroupKind) -> Self {
        Self { kind, namespace: None, labels: String::new(), fields: String::new() }
    }

    /// Every object of a kind in a namespace.
    pub fn namespace(kind: GroupKind, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..Self::all(kind) }
    }

    fn into_proto(self) -> v1::Selection {
        v1::Selection {
            group: self.kind.group.into_owned(),
            kind: self.kind.kind.into_owned(),
            namespace: self.namespace.unwrap_or_default(),
            label_selector: self.labels,
            field_selector: self.fields,
        }
    }
}

/// How one page of a list is asked for.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Objects on the page; 0 for as many as one holds.
    pub limit: u32,
    /// Where the page before ended.
    pub continue_token: Option<String>,
    /// Whether the answer may come from a server that is behind.
    pub local: bool,
}

/// How a write is asked for.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Validate and answer as if, but store nothing.
    pub dry_run: bool,
    /// The same id is applied once; a fresh one where unset.
    pub request_id: Option<RequestId>,
}

/// How a deletion is asked for.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Pods: seconds until it is killed; 0 removes without waiting for the device.
    pub grace_seconds: Option<i64>,
    /// Only this very object.
    pub uid: Option<Uid>,
    /// The same id is applied once; a fresh one where unset.
    pub request_id: Option<RequestId>,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none of that name.
    Created,
    /// It changed.
    Configured,
    /// It was so already.
    Unchanged,
}

/// The answer to a write.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is stored now.
    pub object: Object,
    /// What happened.
    pub outcome: Outcome,
    /// Fields that are accepted and not acted on.
    pub warnings: Vec<String>,
}

/// The answer to a deletion.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object as it was, or with its mark.
    pub object: Object,
    /// `false`: marked, and removed once it has stopped or its finalizers are done.
    pub removed: bool,
}

/// A client of a region. Cheap to clone; clones share the connections to its servers, which are made when first needed and
/// again whenever they are lost.
///
/// It knows one server or several. Where one cannot be reached or cannot do now what is asked, the others are asked in turn, for up to 15 s:
/// what reads, and what writes with a request id, as all writes of objects do, so that it is done once. What has none (making a
/// token, `exec`) goes to another server only where it was surely never sent.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) servers: Arc<Servers>,
}

impl Client {
    /// A client for the context in use. Connects when first used; must be called within a tokio runtime.
    pub fn connect(config: &Config) -> Result<Self, ClientError> {
        Self::from_resolved(&config.resolve()?)
    }

    /// A client for one region and user.
    pub fn from_resolved(resolved: &Resolved) -> Result<Self, ClientError> {
        let bad = |what: &'static str| move |why: String| ClientError::Credentials { what, why };
        let roots = roots(&resolved.ca_pem).map_err(bad("certificate-authority-data"))?;
        let chain = CertificateDer::pem_slice_iter(&resolved.certificate_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad("client-certificate-data")(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&resolved.key_pem)
            .map_err(|error| bad("client-key-data")(error.to_string()))?;
        let server_name = ServerName::try_from(resolved.server_name.clone())
            .map_err(|error| bad("tls-server-name")(error.to_string()))?;
        let mut tls = ClientConfig::builder_with_provider(connect::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("TLS")(error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad("client-certificate-data")(error.to_string()))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { servers: Arc::new(Servers::new(resolved.addresses.clone(), &server_name, &Arc::new(tls))?) })
    }

    /// A client over a channel that is there already.
    pub fn from_channel(channel: Channel) -> Self {
        Self { servers: Arc::new(Servers::one(channel)) }
    }

    /// The channel to the server that answered last, for services that this client has no methods for.
    pub fn channel(&self) -> Channel {
        self.servers.channel()
    }

    /// The addresses of the servers, that of the one that answered last first.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.addresses()
    }

    /// One object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Object, Status> {
        let request = v1::GetRequest { r#ref: Some(convert::reference(key)), local: false };
        let get = async |channel, request| resources(channel).get(request).await;
        convert::object(&self.servers.call(Again::Safe, request, get).await?)
    }

    /// Every object that is selected, over all pages, and the revision that they show.
    pub async fn list(&self, selection: &Selection) -> Result<(Vec<Object>, Revision), Status> {
        let mut options = ListOptions { limit: PAGE, ..ListOptions::default() };
        let mut items = Vec::new();
        loop {
            let mut page = self.list_page(selection, &options).await?;
            items.append(&mut page.items);
            match page.continue_token {
                Some(token) => options.continue_token = Some(token),
                None => return Ok((items, page.revision)),
            }
        }
    }

    /// One page of a list.
    pub async fn list_page(&self, selection: &Selection, options: &ListOptions) -> Result<ListPage, Status> {
        let request = v1::ListRequest {
            selection: Some(selection.clone().into_proto()),
            limit: options.limit,
            continue_token: options.continue_token.clone().unwrap_or_default(),
            local: options.local,
        };
        let list = async |channel, request| resources(channel).list(request).await;
        let answer = self.servers.call(Again::Safe, request, list).await?;
        let more = !answer.continue_token.is_empty();
        Ok(ListPage {
            items: answer.items.iter().map(convert::object).collect::<Result<_, _>>()?,
            revision: Revision(answer.revision),
            continue_token: more.then_some(answer.continue_token),
            remaining: Some(answer.remaining).filter(|remaining| *remaining > 0 || !more),
        })
    }

    /// Changes after a revision; from zero, first everything that is there as `Added`, then a `Bookmark`.
    /// Ends with an error; `Expired` where the revision is no longer in the history.
    pub async fn watch(&self, selection: &Selection, from: Revision) -> Result<Answers<WatchEvent>, Status> {
        let request = v1::WatchRequest { selection: Some(selection.clone().into_proto()), from_revision: from.0 };
        let watch = async |channel, request| resources(channel).watch(request).await;
        let events = self.servers.call(Again::Safe, request, watch).await?;
        Ok(Box::pin(events.map(|event| event.map_err(|error| convert::status(&error)).and_then(convert::watch_event))))
    }

    /// Creates an object; fails where there is one of that name.
    pub async fn create(&self, object: &Value, options: &WriteOptions) -> Result<Written, Status> {
        let create = async |channel, request| resources(channel).create(request).await;
        answered(self.servers.call(Again::Safe, write(object, options)?, create).await?)
    }

    /// Replaces an object; `metadata.resourceVersion` in it, where set, must be the stored one.
    pub async fn update(&self, object: &Value, options: &WriteOptions) -> Result<Written, Status> {
        let update = async |channel, request| resources(channel).update(request).await;
        answered(self.servers.call(Again::Safe, write(object, options)?, update).await?)
    }

    /// Replaces `status` alone.
    pub async fn update_status(&self, object: &Value, options: &WriteOptions) -> Result<Written, Status> {
        let update_status = async |channel, request| resources(channel).update_status(request).await;
        answered(self.servers.call(Again::Safe, write(object, options)?, update_status).await?)
    }

    /// Replaces `spec.ephemeralContainers` of a Pod alone, which can only grow; `metadata.resourceVersion`, where set, must be the stored one.
    pub async fn update_ephemeral_containers(&self, pod: &Value, options: &WriteOptions) -> Result<Written, Status> {
        let update = async |channel, request| resources(channel).update_ephemeral_containers(request).await;
        answered(self.servers.call(Again::Safe, write(pod, options)?, update).await?)
    }

    /// Three-way merge with what was applied last; creates where there is none.
    pub async fn apply(&self, object: &Value, options: &WriteOptions) -> Result<Written, Status> {
        let apply = async |channel, request| resources(channel).apply(request).await;
        answered(self.servers.call(Again::Safe, write(object, options)?, apply).await?)
    }

    /// Applies several objects, as [`Client::apply`] does each, in one transaction: all of them or none. The answers are in the order of
    /// the objects, which does not matter otherwise: an owner's Namespace is made where it is missing, and a Namespace may come after what
    /// is in it.
    ///
    /// An error is that of the first object that cannot be applied, and nothing was done; it names the object, by
    /// [`Status::object`] and in its text, or by its place (`objects[3]`) where it has no name. At most 400 objects and 16 MiB at once;
    /// an object may be there only once. Objects that are as they should be are answered as [`Outcome::Unchanged`], and where all are,
    /// nothing is written. With `dry_run` everything is checked and nothing stored.
    pub async fn apply_all(&self, objects: &[Value], options: &WriteOptions) -> Result<Vec<Written>, Status> {
        let request = v1::ApplyAllRequest {
            objects: objects.iter().map(json).collect::<Result<_, _>>()?,
            request_id: id(options.request_id.as_ref()),
            dry_run: options.dry_run,
        };
        let apply_all = async |channel, request| resources(channel).apply_all(request).await;
        let answer = self.servers.call(Again::Safe, request, apply_all).await?;
        answer.items.into_iter().map(answered).collect()
    }

    /// JSON merge patch (RFC 7386), of the object or of its `status`.
    pub async fn patch(
        &self,
        key: &ObjectKey,
        patch: &Value,
        status: bool,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let request = v1::PatchRequest {
            r#ref: Some(convert::reference(key)),
            patch: json(patch)?,
            request_id: id(options.request_id.as_ref()),
            status,
            dry_run: options.dry_run,
        };
        let patch = async |channel, request| resources(channel).patch(request).await;
        answered(self.servers.call(Again::Safe, request, patch).await?)
    }

    /// Deletes an object, at once or gracefully.
    pub async fn delete(&self, key: &ObjectKey, options: &DeleteOptions) -> Result<Deleted, Status> {
        let request = v1::DeleteRequest {
            r#ref: Some(convert::reference(key)),
            request_id: id(options.request_id.as_ref()),
            grace_seconds: options.grace_seconds,
            uid: options.uid.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let delete = async |channel, request| resources(channel).delete(request).await;
        let answer = self.servers.call(Again::Safe, request, delete).await?;
        Ok(Deleted { removed: answer.removed, object: convert::required(answer.object)? })
    }

    /// A pod's log, as chunks of bytes.
    pub async fn logs(&self, request: v1::LogsRequest) -> Result<Answers<bytes::Bytes>, Status> {
        let logs = async |channel, request| v1::pods_client::PodsClient::new(channel).logs(request).await;
        let chunks = self.servers.call(Again::Safe, request, logs).await?;
        Ok(Box::pin(chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(|error| convert::status(&error)))))
    }

    /// Runs a command in a container. `input` begins with the `ExecStart`; the last output is the exit code
    /// or why the command could not be run.
    pub async fn exec(
        &self,
        input: impl Stream<Item = v1::ExecInput> + Send + 'static,
    ) -> Result<Answers<v1::ExecOutput>, Status> {
        let mut pods = self.pods_for_a_stream().await?;
        let answer = pods.exec(input).await.map_err(|error| convert::status(&error))?;
        let outputs = answer.into_inner();
        Ok(Box::pin(outputs.map(|output| output.map_err(|error| convert::status(&error)))))
    }

    /// What a container's first process reads and writes from now on. `input` begins with an `ExecStart` without a command; the outputs
    /// end with it.
    pub async fn attach(
        &self,
        input: impl Stream<Item = v1::ExecInput> + Send + 'static,
    ) -> Result<Answers<v1::ExecOutput>, Status> {
        let mut pods = self.pods_for_a_stream().await?;
        let answer = pods.attach(input).await.map_err(|error| convert::status(&error))?;
        Ok(Box::pin(answer.into_inner().map(|output| output.map_err(|error| convert::status(&error)))))
    }

    /// One connection to a port of a pod's loopback. `input` begins with the `PortForwardStart`; the first output says that something
    /// accepted, or why nothing did.
    pub async fn port_forward(
        &self,
        input: impl Stream<Item = v1::PortForwardInput> + Send + 'static,
    ) -> Result<Answers<v1::PortForwardOutput>, Status> {
        let mut pods = self.pods_for_a_stream().await?;
        let answer = pods.port_forward(input).await.map_err(|error| convert::status(&error))?;
        Ok(Box::pin(answer.into_inner().map(|output| output.map_err(|error| convert::status(&error)))))
    }

    /// What a device and its pods use now; of one namespace's pods where one is named.
    pub async fn stats(&self, device: &str, namespace: &str) -> Result<v1::StatsResponse, Status> {
        let request = v1::StatsRequest { device: device.to_owned(), namespace: namespace.to_owned() };
        let stats = async |channel, request| v1::pods_client::PodsClient::new(channel).stats(request).await;
        self.servers.call(Again::Safe, request, stats).await
    }

    /// By what a device is reached now, and what its line is like. A tunnel to it is opened where there is none.
    pub async fn line(&self, device: &str) -> Result<v1::LineResponse, Status> {
        let request = v1::LineRequest { device: device.to_owned() };
        let line = async |channel, request| v1::pods_client::PodsClient::new(channel).line(request).await;
        self.servers.call(Again::Safe, request, line).await
    }

    /// For what is sent as a stream, which can be sent once: to a server that is there.
    async fn pods_for_a_stream(&self) -> Result<v1::pods_client::PodsClient<Channel>, Status> {
        if self.servers.has_others() {
            self.info().await?;
        }
        Ok(v1::pods_client::PodsClient::new(self.channel()))
    }

    /// What the region says of itself.
    pub async fn info(&self) -> Result<v1::InfoResponse, Status> {
        let info = async |channel, request| region(channel).info(request).await;
        self.servers.call(Again::Safe, v1::InfoRequest {}, info).await
    }

    /// A backup of the region as it is now, as chunks of bytes. With the key of its CA: as secret as that.
    pub async fn backup(&self) -> Result<Answers<bytes::Bytes>, Status> {
        let backup = async |channel, request| region(channel).backup(request).await;
        let chunks = self.servers.call(Again::Safe, v1::BackupRequest {}, backup).await?;
        Ok(Box::pin(chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(|error| convert::status(&error)))))
    }

    /// The keys by which the zone is signed, after a step of their rollover. `parent_ds_ttl` is that of `DsSeen`; zero: a day.
    pub async fn dnssec(&self, step: v1::DnssecStep, parent_ds_ttl: Duration) -> Result<v1::DnssecResponse, Status> {
        let again = if step == v1::DnssecStep::Unspecified { Again::Safe } else { Again::Never };
        let request = v1::DnssecRequest { step: step.into(), parent_ds_ttl_seconds: parent_ds_ttl.as_secs() };
        let dnssec = async |channel, request| region(channel).dnssec(request).await;
        self.servers.call(again, request, dnssec).await
    }

    /// How certificates are ordered from a public authority, after a change where one is asked for.
    pub async fn acme(
        &self,
        step: v1::AcmeStep,
        settings: Option<v1::AcmeSettings>,
    ) -> Result<v1::AcmeResponse, Status> {
        let again = if step == v1::AcmeStep::Unspecified { Again::Safe } else { Again::Never };
        let acme = async |channel, request| region(channel).acme(request).await;
        self.servers.call(again, v1::AcmeRequest { step: step.into(), settings }, acme).await
    }

    /// Makes a one-time token by which a device of `owner` joins. `valid` zero: the region's default.
    pub async fn create_token(&self, owner: &str, valid: Duration) -> Result<v1::CreateTokenResponse, Status> {
        self.make_token(owner, false, valid).await
    }

    /// Makes a token that shows the status page of an owner. `valid` zero: the region's default.
    pub async fn create_status_token(&self, owner: &str, valid: Duration) -> Result<v1::CreateTokenResponse, Status> {
        let request = v1::CreateTokenRequest {
            owner: owner.to_owned(),
            valid_seconds: valid.as_secs(),
            any_owner: false,
            server: false,
            relay: false,
            status: true,
        };
        let create = async |channel, request| region(channel).create_token(request).await;
        self.servers.call(Again::Never, request, create).await
    }

    /// The same for a device that says itself whose it is: whoever has the token chooses any owner.
    pub async fn create_token_for_any_owner(&self, valid: Duration) -> Result<v1::CreateTokenResponse, Status> {
        self.make_token("", true, valid).await
    }

    async fn make_token(
        &self,
        owner: &str,
        any_owner: bool,
        valid: Duration,
    ) -> Result<v1::CreateTokenResponse, Status> {
        let request = v1::CreateTokenRequest {
            owner: owner.into(),
            valid_seconds: valid.as_secs(),
            any_owner,
            server: false,
            relay: false,
            status: false,
        };
        let create = async |channel, request| region(channel).create_token(request).await;
        self.servers.call(Again::Never, request, create).await
    }

    /// The join tokens that there are, newest first, without their secrets; used and expired ones too, as long as they are kept.
    pub async fn list_tokens(&self) -> Result<Vec<v1::Token>, Status> {
        let list = async |channel, request| region(channel).list_tokens(request).await;
        Ok(self.servers.call(Again::Safe, v1::ListTokensRequest {}, list).await?.tokens)
    }

    /// Deletes a join token by its id, so that nobody joins by it any more. A device that has joined stays.
    pub async fn delete_token(&self, id: &str) -> Result<(), Status> {
        let delete = async |channel, request| region(channel).delete_token(request).await;
        self.servers.call(Again::Never, v1::DeleteTokenRequest { id: id.into() }, delete).await.map(drop)
    }
}

fn resources(channel: Channel) -> v1::resources_client::ResourcesClient<Channel> {
    v1::resources_client::ResourcesClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

pub(crate) fn region(channel: Channel) -> v1::region_client::RegionClient<Channel> {
    v1::region_client::RegionClient::new(channel)
}

/// The certificates of a PEM text as the only roots of trust.
pub(crate) fn roots(ca_pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate".into()) } else { Ok(roots) }
}

pub(crate) fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(REQUEST_TIMEOUT);
    request
}

fn id(given: Option<&RequestId>) -> String {
    given.map_or_else(|| uuid::Uuid::new_v4().to_string(), ToString::to_string)
}

fn json(value: &Value) -> Result<bytes::Bytes, Status> {
    let text = serde_json::to_vec(value).map_err(|error| Status::internal(format!("cannot write JSON: {error}")))?;
    Ok(text.into())
}

fn write(object: &Value, options: &WriteOptions) -> Result<v1::WriteRequest, Status> {
    Ok(v1::WriteRequest { json: json(object)?, request_id: id(options.request_id.as_ref()), dry_run: options.dry_run })
}

fn answered(answer: v1::WriteResponse) -> Result<Written, Status> {
    use v1::write_response::Outcome as Wire;
    let outcome = match answer.outcome() {
        Wire::Created => Outcome::Created,
        Wire::Configured => Outcome::Configured,
        Wire::Unchanged => Outcome::Unchanged,
        Wire::Unspecified => return Err(Status::internal("the server's answer does not say what it did")),
    };
    Ok(Written { object: convert::required(answer.object)?, outcome, warnings: answer.warnings })
}
