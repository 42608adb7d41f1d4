//! Stores and objects for tests.

use std::{path::Path, sync::Arc, time::Duration};

use hearth_raft::{
    RaftConfig, RaftStore, RaftStoreError,
    disk::{Disk, MemoryDisk, RealDisk},
};
use hearth_types::{
    Clock, GroupKind, Object, ObjectKey, RequestId, Revision, Status, Timestamp,
    store::{Consistency, Expect, Op, Store as _, Txn, write_one},
};
use serde_json::json;

/// A bound on anything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000)
    }
}

pub(crate) fn config(dir: &Path) -> RaftConfig {
    RaftConfig::new(dir, 1, "home")
}

/// Small files and frequent snapshots, so that short tests meet all of them.
pub(crate) fn small(dir: &Path, entries: u64) -> RaftConfig {
    let mut config = config(dir);
    config.tuning.segment_bytes = 2_048;
    config.tuning.tail_bytes = 1_000;
    config.tuning.snapshot_log_entries = entries;
    config.tuning.entries_kept = 2;
    config
}

pub(crate) async fn open(config: RaftConfig) -> Result<RaftStore, RaftStoreError> {
    open_on(Arc::new(RealDisk), config).await
}

pub(crate) async fn open_on(disk: Arc<dyn Disk>, config: RaftConfig) -> Result<RaftStore, RaftStoreError> {
    RaftStore::open_on(disk, config, &prometheus::Registry::new(), Arc::new(Fixed)).await
}

/// Opens a store in memory.
pub(crate) async fn memory(disk: &MemoryDisk, config: RaftConfig) -> Result<RaftStore, RaftStoreError> {
    open_on(Arc::new(disk.clone()), config).await
}

pub(crate) fn object(name: &str, data: &str) -> Object {
    Object::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": data},
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}")}}))
    .expect("an object")
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, "n", name)
}

pub(crate) fn txn(id: &str, ops: Vec<Op>) -> Txn {
    Txn { request_id: RequestId::from(id), atomic: true, ops, now: Fixed.now() }
}

/// Creates or updates an object; the name and data make the request id.
pub(crate) async fn put(store: &RaftStore, name: &str, data: &str) -> Result<Revision, Status> {
    let object = object(name, data);
    let exists = store.get(object.key(), Consistency::Local).await?.is_some();
    let op = if exists { Op::Update { object, expect: Expect::default() } } else { Op::Create { object } };
    let id = RequestId::from(format!("{name}-{}", data.chars().take(40).collect::<String>()));
    write_one(store, id, op, Fixed.now()).await.map(|object| object.revision())
}

/// The data of an object.
pub(crate) async fn data(store: &RaftStore, name: &str, read: Consistency) -> Option<String> {
    let object = store.get(&key(name), read).await.expect("reads go on")?;
    Some(object.value()["data"]["x"].as_str().expect("text").to_owned())
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = tokio::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
