//! Backups: who gets one, how they are bounded, and what is said of one that fails.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::StreamExt as _;
use hearth_api::{BackupSource, Frozen};
use hearth_client::Client;
use hearth_types::{BoxFuture, Reason, Status};

use crate::region::Region;

/// More than is on its way between a server and a client that does not read.
const BYTES: usize = 8 << 20;

/// A source of bytes that are known, or of a part of them.
#[derive(Default)]
pub(crate) struct FakeBackups {
    fails: AtomicBool,
}

fn expected() -> Vec<u8> {
    (0..BYTES).map(|at| (at / 1_000) as u8).collect()
}

impl BackupSource for FakeBackups {
    fn freeze(&self) -> BoxFuture<'_, Result<Frozen, Status>> {
        let fails = self.fails.load(Ordering::Relaxed);
        Box::pin(async move {
            Ok(Box::new(move |out: &mut dyn io::Write| {
                let bytes = expected();
                out.write_all(&bytes[..100])?;
                if fails {
                    return Err(io::Error::other("the state cannot be read"));
                }
                out.write_all(&bytes[100..])
            }) as Frozen)
        })
    }
}

async fn whole(client: &Client) -> Result<Vec<u8>, Status> {
    let mut chunks = client.backup().await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn an_admin_gets_a_backup_whole_and_nobody_else_gets_one() {
    let region = Region::start().await;
    assert!(whole(&region.admin()).await.unwrap() == expected());
    let refused = whole(&region.user("alice", &[])).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_backup_that_fails_ends_with_an_error_and_never_as_if_it_were_whole() {
    let region = Region::start().await;
    region.backups.fails.store(true, Ordering::Relaxed);
    let error = whole(&region.admin()).await.unwrap_err();
    assert!(error.message.contains("not finished") && error.message.contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn backups_that_nobody_reads_are_bounded_and_give_their_room_back() {
    let region = Region::start().await;
    let admin = region.admin();
    let (first, second) = (admin.backup().await.unwrap(), admin.backup().await.unwrap());
    let refused = whole(&admin).await.unwrap_err();
    assert_eq!(refused.reason, Reason::TooManyRequests, "{refused}");
    drop(first);
    let start = tokio::time::Instant::now();
    while let Err(busy) = whole(&admin).await {
        assert_eq!(busy.reason, Reason::TooManyRequests, "{busy}");
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "its room is not given back");
    }
    drop(second);
}
