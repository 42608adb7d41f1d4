//! What a region says of itself, and the making of join tokens.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hearth_proto::v1;
use hearth_types::{
    GroupKind, Reason, Status,
    acme::{CERTIFICATES_PER_WEEK, Settings},
    dns::keys::Role,
    group::{Group, MAX_SERVERS},
    store::{Consistency, Query},
};
use tonic::{Request, Response};

use super::{
    backup::{self, Backups},
    convert::grpc,
};
use crate::{
    acme::{AcmeSettings, Asked},
    dnssec::{Step, ZoneSigning},
    resources::ResourceService,
    server::Doors,
    status_page::status_host,
    tokens::{Joiner, Tokens},
};

/// How long the group may take to say who belongs to it: an answer without is better than none.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct RegionDoor {
    pub(crate) resources: Arc<ResourceService>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) region: String,
    pub(crate) version: String,
    pub(crate) backups: Backups,
    /// `None` where nobody says which servers there are.
    pub(crate) group: Option<Arc<dyn Group>>,
    pub(crate) doors: Doors,
    /// `None` where the zone is not signed.
    pub(crate) signing: Option<Arc<ZoneSigning>>,
    pub(crate) acme: AcmeSettings,
}

impl RegionDoor {
    /// Where the region's servers answer; empty where that cannot be said now.
    async fn servers(&self) -> Vec<String> {
        let Some(group) = &self.group else { return Vec::new() };
        match tokio::time::timeout(MEMBERS_TIMEOUT, group.members()).await {
            Ok(Ok(members)) => members.into_iter().map(|member| member.server.address).take(MAX_SERVERS).collect(),
            // Whoever asks keeps what it knows.
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
}

impl RegionDoor {
    /// The page is reached as apps are: at the gateways' port.
    fn status_link(&self, token: &str) -> String {
        let host = status_host(self.resources.zone());
        let gateway = self.doors.gateways.first().and_then(|address| address.parse::<SocketAddr>().ok());
        match gateway.map(|address| address.port()) {
            None | Some(443) => format!("https://{host}/in/{token}"),
            Some(port) => format!("https://{host}:{port}/in/{token}"),
        }
    }
}

/// What a person said of how certificates are ordered.
fn asked(said: v1::AcmeSettings) -> Result<Asked, Status> {
    let bad = |text: &str| Status::new(Reason::BadRequest, text);
    let binding = match (said.eab_kid.is_empty(), said.eab_key.is_empty()) {
        (true, true) => None,
        (false, false) => Some((said.eab_kid, said.eab_key)),
        _ => return Err(bad("an external account has a name and a key: give both, or none to keep what there is")),
    };
    let roots = String::from_utf8(said.roots_pem.to_vec()).map_err(|_| bad("the roots are no text: PEM is needed"))?;
    let settings = Settings {
        contacts: said.contacts,
        roots: Some(roots).filter(|roots| !roots.is_empty()),
        certificates_per_week: match said.certificates_per_week {
            0 => CERTIFICATES_PER_WEEK,
            number => number,
        },
        issuers: said.issuers,
        no_caa: said.no_caa,
        logs: said.logs,
        ..Settings::new(&said.directory)
    };
    Ok(Asked { settings, binding })
}

/// What is told of the settings: all but what is secret.
fn told(settings: Settings) -> v1::AcmeResponse {
    let caa = settings.caa();
    let account = settings.own_account().map(|account| account.uri.clone()).unwrap_or_default();
    let settings = v1::AcmeSettings {
        directory: settings.directory,
        contacts: settings.contacts,
        roots_pem: settings.roots.unwrap_or_default().into_bytes().into(),
        eab_kid: settings.binding.map(|binding| binding.kid).unwrap_or_default(),
        eab_key: String::new(),
        certificates_per_week: settings.certificates_per_week,
        issuers: settings.issuers,
        no_caa: settings.no_caa,
        logs: settings.logs,
    };
    v1::AcmeResponse { settings: Some(settings), account, caa }
}

fn joiner(request: &v1::CreateTokenRequest) -> Result<Joiner<'_>, Status> {
    let bad = |text: &str| Err(Status::new(Reason::BadRequest, text));
    if request.status {
        return match (request.owner.as_str(), request.any_owner, request.server, request.relay) {
            ("", ..) => bad("owner: required: whose status page the token shows"),
            (owner, false, false, false) => Ok(Joiner::StatusOf(owner)),
            _ => bad("status excludes any_owner, server and relay: nobody joins by the token"),
        };
    }
    if request.relay {
        return match (request.owner.as_str(), request.any_owner, request.server) {
            ("", false, false) => Ok(Joiner::Relay),
            _ => bad("relay excludes owner, any_owner and server: a relay is nobody's"),
        };
    }
    match (request.owner.as_str(), request.any_owner, request.server) {
        ("", false, true) => Ok(Joiner::Server),
        (_, _, true) => bad("server and owner exclude each other: a server is nobody's"),
        ("", true, false) => Ok(Joiner::Device),
        ("", false, false) => bad(
            "owner: required: whose device joins by the token; a token by which the device says itself whose it is, be it anybody, has to \
             be asked for in so many words (any_owner)",
        ),
        (_, true, false) => bad("owner and any_owner exclude each other"),
        (owner, false, false) => Ok(Joiner::DeviceOf(owner)),
    }
}

#[tonic::async_trait]
impl v1::region_server::Region for RegionDoor {
    type BackupStream = backup::Chunks;

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, tonic::Status> {
        // A page of one answers with the revision too.
        let query = Query::all(GroupKind::NAMESPACE);
        let page = self.resources.list(&query, 1, None, Consistency::Linearizable).await.map_err(grpc)?;
        Ok(Response::new(v1::InfoResponse {
            version: self.version.clone(),
            region: self.region.clone(),
            zone: self.resources.zone().to_owned(),
            incarnation: self.resources.store().incarnation().to_string(),
            revision: page.revision.0,
            servers: self.servers().await,
            gateways: self.doors.gateways.clone(),
            dns: self.doors.dns.clone(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, tonic::Status> {
        let request = request.into_inner();
        let valid = Duration::from_secs(request.valid_seconds);
        let joiner = joiner(&request).map_err(grpc)?;
        let (token, expires) = self.tokens.create(joiner, valid).await.map_err(grpc)?;
        let id = token.secret.split_once('.').map_or("", |(id, _)| id).to_owned();
        let text = if request.status { self.status_link(&token.secret) } else { token.to_string() };
        Ok(Response::new(v1::CreateTokenResponse { token: text, expires_millis: expires.0, id }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, tonic::Status> {
        let tokens = self.tokens.list().await.map_err(grpc)?;
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn delete_token(
        &self,
        request: Request<v1::DeleteTokenRequest>,
    ) -> Result<Response<v1::DeleteTokenResponse>, tonic::Status> {
        self.tokens.delete(&request.get_ref().id).await.map_err(grpc)?;
        Ok(Response::new(v1::DeleteTokenResponse {}))
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<backup::Chunks>, tonic::Status> {
        Ok(Response::new(self.backups.begin().await.map_err(grpc)?))
    }

    async fn dnssec(&self, request: Request<v1::DnssecRequest>) -> Result<Response<v1::DnssecResponse>, tonic::Status> {
        let request = request.into_inner();
        let unsigned = || Status::new(Reason::BadRequest, "this server signs no zone");
        let signing = self.signing.as_ref().ok_or_else(unsigned).map_err(grpc)?;
        let step = match request.step() {
            v1::DnssecStep::Unspecified if request.step == 0 => None,
            v1::DnssecStep::Unspecified => {
                return Err(grpc(Status::new(Reason::BadRequest, format!("step {}: there is no such", request.step))));
            }
            v1::DnssecStep::RollZsk => Some(Step::Roll(Role::Zsk)),
            v1::DnssecStep::RollKsk => Some(Step::Roll(Role::Ksk)),
            v1::DnssecStep::DsSeen => Some(Step::DsSeen(Duration::from_secs(request.parent_ds_ttl_seconds))),
        };
        let set = match step {
            Some(step) => signing.step(step).await.map_err(grpc)?,
            None => signing.ensure().await.map_err(grpc)?,
        };
        let (now, zone) = (signing.now(), signing.zone());
        let keys = set.keys.iter().map(|key| v1::DnssecKey {
            ksk: key.role == Role::Ksk,
            tag: key.tag().unwrap_or_default().into(),
            phase: key.phase(now).label().to_owned(),
            created_millis: key.created.0,
            active_millis: key.active.map_or(0, |at| at.0),
            retired_millis: key.retired.map_or(0, |at| at.0),
            ds: key.in_cds_set(now).then(|| key.ds_line(zone)).flatten().unwrap_or_default(),
        });
        Ok(Response::new(v1::DnssecResponse { zone: zone.to_owned(), keys: keys.collect() }))
    }

    async fn acme(&self, request: Request<v1::AcmeRequest>) -> Result<Response<v1::AcmeResponse>, tonic::Status> {
        let request = request.into_inner();
        let bad = |text: String| grpc(Status::new(Reason::BadRequest, text));
        let settings = match request.step() {
            v1::AcmeStep::Unspecified if request.step == 0 => self.acme.get().await.map_err(grpc)?,
            v1::AcmeStep::Unspecified => return Err(bad(format!("step {}: there is no such", request.step))),
            v1::AcmeStep::Set => {
                let said = request.settings.ok_or_else(|| bad("settings: required".into()))?;
                Some(self.acme.set(asked(said).map_err(grpc)?).await.map_err(grpc)?)
            }
            v1::AcmeStep::Off => {
                self.acme.remove().await.map_err(grpc)?;
                None
            }
        };
        Ok(Response::new(settings.map(told).unwrap_or_default()))
    }
}
