//! Join tokens: Secrets of the type [`kinds::JOIN_TOKEN_TYPE`] in `kube-system`, after Kubernetes' bootstrap
//! tokens. Of the secret part only its SHA-256 is stored. A token is good for one key.

mod relays;
mod servers;
mod status;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_proto::v1;
use hearth_types::{
    DeviceKey, GroupKind, Object, ObjectKey, Reason, RequestId, Status, Timestamp, Uid,
    admission::{Context, Part, prepare_create, prepare_update},
    kinds, names, recovery, registry,
    selector::{FieldSelector, Selector},
    store::{Consistency, Expect, Op, OpError, Query, Txn, list_all, write_one},
    token::{JoinToken, MAX_TOKEN_ADDRESSES},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use crate::{
    ca::{CertificateAuthority, sha256},
    resources::{ResourceService, WriteOptions, shown},
    servers::Servers,
};

/// How long a token is good for unless asked otherwise: long enough to walk to the device.
const DEFAULT_VALIDITY: Duration = Duration::from_hours(1);
/// The longest that can be asked for: a week in the post.
const MAX_VALIDITY: Duration = Duration::from_hours(7 * 24);
/// How long a token is kept after it expired, so that a device that joined by it may ask again.
const KEPT: Duration = Duration::from_hours(30 * 24);
/// Tokens that are kept at most.
const MAX_TOKENS: usize = 10_000;
/// How long the addresses of the other servers are waited for: a token with those that are known is better than none.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(2);
/// Where tokens are.
const NAMESPACE: &str = "kube-system";
/// Tries of a join whose objects changed meanwhile.
const MAX_ATTEMPTS: usize = 16;

/// Characters of a token's id and secret: 32 of them, 5 bits each.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of the id, which is no secret.
const ID_CHARS: usize = 10;
/// Characters of the secret: 160 bits.
const SECRET_CHARS: usize = 32;

/// Makes and redeems join tokens.
pub(crate) struct Tokens {
    pub(crate) resources: Arc<ResourceService>,
    pub(crate) ca: Arc<CertificateAuthority>,
    /// Where devices find the region.
    pub(crate) addresses: Vec<String>,
    /// The name in the servers' certificate.
    pub(crate) server_name: String,
    /// The region's name.
    pub(crate) region: String,
    /// The servers of the region; `None` where this one has no group.
    pub(crate) servers: Option<Arc<Servers>>,
}

/// Who joins by a token.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Joiner<'a> {
    /// A device of this owner.
    DeviceOf(&'a str),
    /// A device that says itself whose it is.
    Device,
    /// A server of the region.
    Server,
    /// A relay of the region.
    Relay,
    /// Nobody: it shows this owner's status page.
    StatusOf(&'a str),
}

/// A token as it is stored.
struct Stored {
    object: Object,
    hash: String,
    owner: String,
    expires: Timestamp,
    used_by: Option<DeviceKey>,
    device: String,
    purpose: Purpose,
    /// The number of the server that used it; 0 for none.
    server: u64,
    /// The relay that used it.
    relay: String,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Device,
    Server,
    Relay,
    Status,
}

impl Stored {
    fn read(object: Object) -> Option<Self> {
        let value = object.value();
        if value.get("type").and_then(Value::as_str) != Some(kinds::JOIN_TOKEN_TYPE) {
            return None;
        }
        let text = |field: &str| {
            let encoded = value.get("data")?.get(field)?.as_str()?;
            String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
        };
        let used_by = match text("used-by-key") {
            Some(key) => Some(key.parse().ok()?),
            None => None,
        };
        Some(Self {
            hash: text(hash_field(text("for").as_deref() == Some(FOR_STATUS)))?,
            owner: text("owner").unwrap_or_default(),
            expires: Timestamp::parse(&text("expiration")?)?,
            used_by,
            device: text("used-by-device").unwrap_or_default(),
            purpose: match text("for").as_deref() {
                None => Purpose::Device,
                Some(FOR_SERVER) => Purpose::Server,
                Some(FOR_RELAY) => Purpose::Relay,
                Some(FOR_STATUS) => Purpose::Status,
                // Of a newer release: good for nothing here.
                Some(_) => return None,
            },
            server: text("used-by-server").and_then(|text| text.parse().ok()).unwrap_or_default(),
            relay: text("used-by-relay").unwrap_or_default(),
            object,
        })
    }
}

impl Stored {
    fn shown(&self) -> v1::Token {
        let value = self.object.value();
        let created = value.pointer("/metadata/creationTimestamp").and_then(Value::as_str).and_then(Timestamp::parse);
        v1::Token {
            id: self.object.name().strip_prefix(KEY_PREFIX).unwrap_or_default().to_owned(),
            owner: self.owner.clone(),
            created_millis: created.unwrap_or_default().0,
            expires_millis: self.expires.0,
            used_by_device: self.device.clone(),
            used_by_key: self.used_by.map(|key| key.to_string()).unwrap_or_default(),
            server: self.purpose == Purpose::Server,
            used_by_server: self.server,
            relay: self.purpose == Purpose::Relay,
            used_by_relay: self.relay.clone(),
            status: self.purpose == Purpose::Status,
        }
    }
}

/// What a server's token says of whom it is for.
const FOR_SERVER: &str = "server";
/// The same of a relay's.
const FOR_RELAY: &str = "relay";
/// The same of one that shows an owner's status page.
const FOR_STATUS: &str = "status";
/// Where the secret's hash is. A server of a release that knows no status pages takes a token without the first for none, and lets no device
/// join by it.
fn hash_field(status: bool) -> &'static str {
    if status { "status-secret-sha256" } else { "secret-sha256" }
}

/// What the names of the Secrets begin with.
const KEY_PREFIX: &str = "join-token-";

fn token_key(id: &str) -> ObjectKey {
    ObjectKey::new(GroupKind::SECRET, NAMESPACE, &format!("{KEY_PREFIX}{id}"))
}

fn random_text(chars: usize) -> Result<String, Status> {
    let mut bytes = vec![0; chars];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Status::internal("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn forbidden(text: impl Into<String>) -> Status {
    Status::new(Reason::Forbidden, text)
}

impl Tokens {
    /// Makes a token. It is answered whole, once; `valid` zero means the default.
    pub(crate) async fn create(&self, joiner: Joiner<'_>, valid: Duration) -> Result<(JoinToken, Timestamp), Status> {
        if let Joiner::DeviceOf(owner) | Joiner::StatusOf(owner) = joiner {
            check_owner(owner)?;
        }
        let (usual, most, what) = match joiner {
            Joiner::StatusOf(_) => (status::DEFAULT_VALIDITY, status::MAX_VALIDITY, "token of a status page"),
            _ => (DEFAULT_VALIDITY, MAX_VALIDITY, "join token"),
        };
        let valid = if valid.is_zero() { usual } else { valid };
        if valid > most {
            let text = format!("a {what} is good for at most {} days", most.as_secs() / 86_400);
            return Err(Status::new(Reason::BadRequest, text));
        }
        self.clean().await?;
        let (id, secret) = (random_text(ID_CHARS)?, random_text(SECRET_CHARS)?);
        let expires = self.now().plus(valid).seconds();
        let mut data = json!({
            hash_field(matches!(joiner, Joiner::StatusOf(_))): hex(&sha256(secret.as_bytes())),
            "expiration": expires.to_string(),
        });
        match joiner {
            Joiner::DeviceOf(owner) => data["owner"] = json!(owner),
            Joiner::Device => {}
            Joiner::Server => data["for"] = json!(FOR_SERVER),
            Joiner::Relay => data["for"] = json!(FOR_RELAY),
            Joiner::StatusOf(owner) => {
                data["for"] = json!(FOR_STATUS);
                data["owner"] = json!(owner);
            }
        }
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": kinds::JOIN_TOKEN_TYPE,
            "metadata": {"name": token_key(&id).name, "namespace": NAMESPACE}, "stringData": data,
        });
        self.resources.create(object, &WriteOptions::default()).await?;
        let token = JoinToken {
            addresses: self.known_addresses().await,
            server_name: self.server_name.clone(),
            ca_hash: self.ca.spki_hash(),
            secret: format!("{id}.{secret}"),
        };
        Ok((token, expires))
    }

    /// This server's addresses, and those of the others where they are known.
    pub(crate) async fn known_addresses(&self) -> Vec<String> {
        let mut addresses = self.addresses.clone();
        if let Some(servers) = &self.servers {
            let asked = tokio::time::timeout(MEMBERS_TIMEOUT, servers.group().members()).await;
            for member in asked.into_iter().flatten().flatten() {
                if !addresses.contains(&member.server.address) && names::is_address(&member.server.address) {
                    addresses.push(member.server.address);
                }
            }
        }
        addresses.truncate(MAX_TOKEN_ADDRESSES);
        addresses
    }

    async fn all(&self, read: Consistency) -> Result<Vec<Object>, Status> {
        let fields = FieldSelector::equal("type", kinds::JOIN_TOKEN_TYPE);
        let selector = Selector { fields, ..Selector::default() };
        let query = Query { kind: GroupKind::SECRET, namespace: Some(NAMESPACE.into()), selector };
        Ok(list_all(self.resources.store().as_ref(), &query, read).await?.0)
    }

    /// The tokens that there are, newest first; never their secrets.
    pub(crate) async fn list(&self) -> Result<Vec<v1::Token>, Status> {
        let stored = self.all(Consistency::Linearizable).await?.into_iter().filter_map(Stored::read);
        let mut tokens: Vec<v1::Token> = stored.map(|token| token.shown()).collect();
        tokens.sort_by(|a, b| (b.created_millis, &a.id).cmp(&(a.created_millis, &b.id)));
        Ok(tokens)
    }

    /// Deletes a token, so that nobody joins by it any more.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Status> {
        if id.len() != ID_CHARS || !id.bytes().all(|byte| ALPHABET.contains(&byte)) {
            let text =
                format!("id: {}: a token's id has {ID_CHARS} characters of a-z and 2-7, without the secret", shown(id));
            return Err(Status::new(Reason::BadRequest, text));
        }
        let unknown = || Status::new(Reason::NotFound, format!("there is no join token {id:?}"));
        let object = self.get(&token_key(id)).await?.ok_or_else(unknown)?;
        let token = Stored::read(object).ok_or_else(unknown)?.object;
        let op = Op::Delete { key: token.key().clone(), expect: Expect::uid(token.uid()) };
        match write_one(self.resources.store().as_ref(), fresh_id(), op, self.now()).await {
            Err(status) if status.reason == Reason::NotFound => Err(unknown()),
            done => done.map(drop),
        }
    }

    /// Removes tokens that expired long ago, and refuses where there are too many.
    async fn clean(&self) -> Result<(), Status> {
        let store = self.resources.store();
        let tokens = self.all(Consistency::Local).await?;
        let (now, count) = (self.now(), tokens.len());
        let old = tokens
            .into_iter()
            .filter(|token| Stored::read(token.clone()).is_none_or(|token| token.expires.plus(KEPT) < now));
        let ops: Vec<Op> = old
            .take(hearth_types::store::MAX_OPS)
            .map(|token| Op::Delete { key: token.key().clone(), expect: Expect::same(&token) })
            .collect();
        if count - ops.len() >= MAX_TOKENS {
            let text = format!("there are {MAX_TOKENS} join tokens already; delete some (Secrets in {NAMESPACE})");
            return Err(Status::new(Reason::TooManyRequests, text));
        }
        if !ops.is_empty() {
            store.write(Txn { request_id: fresh_id(), atomic: false, ops, now }).await?;
        }
        Ok(())
    }

    /// Redeems a token: one transaction marks it as used by the key and makes the Device, and the owner's
    /// Namespace where there is none. The same token with the same key again is harmless.
    pub(crate) async fn join(&self, request: &v1::JoinRequest, key: DeviceKey) -> Result<v1::JoinResponse, Status> {
        names::dns_label(&request.device_name).map_err(|why| {
            Status::new(Reason::BadRequest, format!("device name {}: {why}", shown(&request.device_name)))
        })?;
        for _ in 0..MAX_ATTEMPTS {
            let token = self.presented(&request.token, Consistency::Linearizable).await?;
            let other = match token.purpose {
                Purpose::Device => None,
                Purpose::Server => {
                    Some("the join token is for a server of the region: use it with `hearth server --join TOKEN`")
                }
                Purpose::Relay => Some("the join token is for a relay: use it with `hearth relay --join TOKEN`"),
                Purpose::Status => Some("the token shows a status page, and no device joins by it"),
            };
            if let Some(why) = other {
                return Err(forbidden(why));
            }
            match token.used_by {
                Some(used) if used == key => return self.again(request, &token, key).await,
                Some(_) => {
                    return Err(forbidden(
                        "the join token was used already, by another key: it is good for one device; make a new one with `hearth token create`",
                    ));
                }
                None => {}
            }
            self.still_good(&token)?;
            let owner = owner_of(request, &token)?;
            if let Some(device) = self.redeem(request, &token, &owner, key).await? {
                self.resources.devices().note(&device);
                tracing::info!(device = device.name(), owner, %key, "a device joined");
                return self.answer(device.name(), &owner).await;
            }
        }
        Err(Status::new(Reason::Conflict, "the device's objects kept changing while it joined; try again"))
    }

    /// The token that somebody shows, if it is one.
    async fn presented(&self, shown: &str, read: Consistency) -> Result<Stored, Status> {
        let unknown = || {
            Status::new(
                Reason::Unauthorized,
                "the join token is not known to this region: it was mistyped, deleted, or made by another region",
            )
        };
        let (id, secret) = shown.split_once('.').ok_or_else(unknown)?;
        let malformed = |text: &str| text.len() > 64 || !text.bytes().all(|byte| ALPHABET.contains(&byte));
        if malformed(id) || malformed(secret) || id.is_empty() {
            return Err(unknown());
        }
        let object = self.resources.store().get(&token_key(id), read).await?.ok_or_else(unknown)?;
        let token = Stored::read(object).ok_or_else(unknown)?;
        // Hashes are compared, so the time that it takes tells nothing of the secret.
        if token.hash == hex(&sha256(secret.as_bytes())) { Ok(token) } else { Err(unknown()) }
    }

    fn still_good(&self, token: &Stored) -> Result<(), Status> {
        if token.expires < self.now() {
            return Err(forbidden(format!(
                "the join token expired at {}; make a new one with `hearth token create`",
                token.expires
            )));
        }
        Ok(())
    }

    /// The transaction; `None` where something changed meanwhile.
    async fn redeem(
        &self,
        request: &v1::JoinRequest,
        token: &Stored,
        owner: &str,
        key: DeviceKey,
    ) -> Result<Option<Object>, Status> {
        let name = request.device_name.as_str();
        if let Some((other, _)) = self.resources.devices().lookup(&key)
            && other.as_str() != name
        {
            let text = format!(
                "this key is device {other:?} of the region already; join under that name",
                other = other.as_str()
            );
            return Err(Status::new(Reason::Conflict, text));
        }
        let device_key = ObjectKey::new(GroupKind::DEVICE, "", name);
        let existing = self.get(&device_key).await?;
        let mut ops = vec![self.mark_used(token, "used-by-device", name, key)?];
        let device = if let Some(existing) = existing {
            same_device(&existing, owner, key)?;
            ops.push(Op::Check { key: device_key, expect: Expect::same(&existing) });
            Some(existing)
        } else {
            let device = self.new_device(name, owner, key)?;
            let info = registry::of_kind(&GroupKind::DEVICE).ok_or_else(|| Status::internal("no kind Device"))?;
            ops.extend(self.resources.namespace_op(info, &device).await?);
            ops.push(Op::Create { object: device });
            None
        };
        let txn = Txn { request_id: fresh_id(), atomic: true, ops, now: self.now() };
        let outcomes = self.resources.store().write(txn).await?.outcomes;
        if device.is_none()
            && let Some(Err(error @ OpError::Conflict { .. })) = outcomes.last()
        {
            // A new object conflicts with none of its name: its key is another device's.
            return Err(error.clone().into());
        }
        let mut stored = None;
        for outcome in outcomes {
            match outcome {
                Ok(object) => stored = Some(object),
                // Another join or an operator was faster: look again.
                Err(OpError::Conflict { .. } | OpError::AlreadyExists(_) | OpError::NotFound(_) | OpError::Aborted) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(device.or(stored))
    }

    fn mark_used(&self, token: &Stored, field: &str, by: &str, key: DeviceKey) -> Result<Op, Status> {
        let mut value = token.object.value();
        value["data"]["used-by-key"] = json!(STANDARD.encode(key.to_string()));
        value["data"][field] = json!(STANDARD.encode(by));
        let info = registry::of_kind(&GroupKind::SECRET).ok_or_else(|| Status::internal("no kind Secret"))?;
        let admitted = prepare_update(info, &token.object, value, Part::Main, &self.context())?;
        Ok(Op::Update { object: admitted.object, expect: Expect::same(&token.object) })
    }

    fn new_device(&self, name: &str, owner: &str, key: DeviceKey) -> Result<Object, Status> {
        let value = json!({
            "apiVersion": kinds::API_VERSION, "kind": "Device", "metadata": {"name": name},
            "spec": {"owner": owner, "keys": [key.to_string()]},
        });
        let info = registry::of_kind(&GroupKind::DEVICE).ok_or_else(|| Status::internal("no kind Device"))?;
        Ok(prepare_create(info, value, &self.context())?.object)
    }

    /// The same token with the same key: the same answer, as long as the device is still one of the region.
    async fn again(
        &self,
        request: &v1::JoinRequest,
        token: &Stored,
        key: DeviceKey,
    ) -> Result<v1::JoinResponse, Status> {
        if token.device != request.device_name {
            let text =
                format!("this key joined as device {:?} by this token; it cannot have another name", token.device);
            return Err(Status::new(Reason::Conflict, text));
        }
        let removed = || {
            forbidden(format!(
                "device {:?} was removed from the region, or its key was; to let it in again make a new token with `hearth token create`",
                token.device
            ))
        };
        let device = self.get(&ObjectKey::new(GroupKind::DEVICE, "", &token.device)).await?.ok_or_else(removed)?;
        let (owner, keys) = spec_of(&device);
        if !keys.contains(&key) {
            return Err(removed());
        }
        if !request.owner.is_empty() && request.owner != owner {
            return Err(other_owner(&request.owner, &owner));
        }
        self.resources.devices().note(&device);
        self.answer(device.name(), &owner).await
    }

    async fn answer(&self, device: &str, owner: &str) -> Result<v1::JoinResponse, Status> {
        let record = self.get(&recovery::record_key()).await?;
        let record = record.and_then(|object| recovery::Record::read(&object.value()));
        Ok(v1::JoinResponse {
            device_name: device.to_owned(),
            owner: owner.to_owned(),
            zone: self.resources.zone().to_owned(),
            ca_pem: self.ca.pem().to_owned().into(),
            incarnation: self.resources.store().incarnation().to_string(),
            trust_json: record.map(|record| record.trust.to_json()).unwrap_or_default().into(),
        })
    }

    async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, Status> {
        self.resources.store().get(key, Consistency::Linearizable).await
    }

    fn now(&self) -> Timestamp {
        self.resources.clock().now()
    }

    fn context(&self) -> Context<'_> {
        let uid = Uid::from(uuid::Uuid::new_v4().to_string());
        Context { now: self.now(), uid, suffix: "", zone: self.resources.zone() }
    }
}

fn fresh_id() -> RequestId {
    RequestId::from(uuid::Uuid::new_v4().to_string())
}

fn check_owner(owner: &str) -> Result<(), Status> {
    let bad = |why: &str| Status::new(Reason::BadRequest, format!("owner {}: {why}", shown(owner)));
    names::dns_label(owner).map_err(bad)?;
    if names::RESERVED_OWNERS.contains(&owner) {
        return Err(bad("the name is reserved; an owner's namespace and hostnames have this name"));
    }
    Ok(())
}

fn owner_of(request: &v1::JoinRequest, token: &Stored) -> Result<String, Status> {
    let owner = match (request.owner.as_str(), token.owner.as_str()) {
        ("", "") => {
            return Err(Status::new(
                Reason::BadRequest,
                "the join token names no owner; say whose the device is with --owner",
            ));
        }
        ("", owner) | (owner, "") => owner,
        (asked, bound) if asked == bound => asked,
        (asked, bound) => return Err(other_owner(asked, bound)),
    };
    check_owner(owner)?;
    Ok(owner.to_owned())
}

fn other_owner(asked: &str, bound: &str) -> Status {
    forbidden(format!("the join token is for a device of owner {bound:?}, not of {}", shown(asked)))
}

fn spec_of(device: &Object) -> (String, Vec<DeviceKey>) {
    let value = device.value();
    let owner = value.pointer("/spec/owner").and_then(Value::as_str).unwrap_or_default().to_owned();
    let keys = value.pointer("/spec/keys").and_then(Value::as_array).into_iter().flatten();
    (owner, keys.filter_map(|key| key.as_str()?.parse().ok()).collect())
}

/// A device that is there already may take another token only with its own key, for its own owner.
fn same_device(existing: &Object, owner: &str, key: DeviceKey) -> Result<(), Status> {
    let (bound, keys) = spec_of(existing);
    if !keys.contains(&key) {
        let text = format!(
            "a device named {:?} is there already, with another key; choose another name, or delete that device first",
            existing.name()
        );
        return Err(Status {
            object: Some(Box::new(existing.key().clone())),
            ..Status::new(Reason::AlreadyExists, text)
        });
    }
    if bound != owner {
        let text =
            format!("device {:?} belongs to owner {bound:?}; delete it before it joins another", existing.name());
        return Err(forbidden(text));
    }
    Ok(())
}
