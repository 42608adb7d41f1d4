//! A power cut after every single change to the disk.

use hearth_raft::disk::{Crash, Fault, MemoryDisk};
use hearth_types::{
    Incarnation,
    store::{Consistency, Store as _},
};

use crate::support::{data, memory, put, small};

const DIR: &str = "/raft";
const WRITES: usize = 24;
/// A snapshot every so many entries, so that one is being written at many of the moments.
const SNAPSHOT: u64 = 9;

/// What the outside world knows when the power goes.
#[derive(Default)]
struct Known {
    incarnation: Option<Incarnation>,
    acknowledged: usize,
}

/// Opens and writes until the disk stops.
async fn run(disk: &MemoryDisk) -> Known {
    let mut known = Known::default();
    let Ok(store) = memory(disk, small(DIR.as_ref(), SNAPSHOT)).await else {
        return known;
    };
    known.incarnation = Some(store.incarnation());
    for number in 0..WRITES {
        let text = format!("{number}-{}", "x".repeat(300));
        if put(&store, &format!("o{}", number % 5), &text).await.is_err() {
            break;
        }
        known.acknowledged = number + 1;
    }
    store.shutdown().await.expect("closes");
    known
}

async fn check(disk: &MemoryDisk, known: &Known, when: &str) {
    let store = memory(disk, small(DIR.as_ref(), SNAPSHOT)).await.unwrap_or_else(|error| panic!("{when}: {error}"));
    if let Some(incarnation) = &known.incarnation {
        assert_eq!(store.incarnation(), *incarnation, "{when}");
    }
    assert!(store.revision().0 >= known.acknowledged as u64, "{when}: {} < {}", store.revision(), known.acknowledged);
    for number in known.acknowledged.saturating_sub(5)..known.acknowledged {
        let found = data(&store, &format!("o{}", number % 5), Consistency::Linearizable).await.expect(when);
        let found: usize = found.split('-').next().and_then(|text| text.parse().ok()).expect("a number");
        assert!(found >= number && found % 5 == number % 5, "{when}: {found} < {number}");
    }
    put(&store, "after", when).await.expect("goes on");
    store.shutdown().await.expect("closes");
    // What was acknowledged after the crash survives the next one.
    let store = memory(&disk.after(Crash::LoseAll), small(DIR.as_ref(), SNAPSHOT)).await.expect("opens");
    assert_eq!(data(&store, "after", Consistency::Linearizable).await.as_deref(), Some(when));
    store.shutdown().await.expect("closes");
}

async fn crash_everywhere(crashes: impl Fn(usize) -> Vec<Crash>) {
    let whole = MemoryDisk::new();
    assert_eq!(run(&whole).await.acknowledged, WRITES);
    let changes = whole.changes();
    assert!(changes > 60, "{changes}");
    let mut most = 0;
    for after in 0..changes {
        let disk = MemoryDisk::new();
        disk.inject(Fault::Stop { after });
        let known = run(&disk).await;
        most = most.max(known.acknowledged);
        for crash in crashes(after) {
            check(&disk.after(crash), &known, &format!("{crash:?} after {after} changes")).await;
        }
    }
    assert!(most > WRITES / 2);
}

#[tokio::test]
async fn a_crash_that_loses_all_that_was_not_synced_loses_nothing_acknowledged() {
    crash_everywhere(|_| vec![Crash::LoseAll]).await;
}

#[tokio::test]
async fn a_crash_that_keeps_everything_loses_nothing_acknowledged() {
    crash_everywhere(|_| vec![Crash::KeepAll]).await;
}

#[tokio::test]
async fn a_crash_that_keeps_some_of_it_loses_nothing_acknowledged() {
    crash_everywhere(|after| (0..4).map(|seed| Crash::Some((after as u64) << 8 | seed)).collect()).await;
}
