//! Tables and properties of the arithmetic; the whole is in [`sim`].

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::Uid;

mod sim;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> Moment {
    Moment(seconds * SECOND)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_holder_is_gone_well_before_anybody_else_may_come() {
    for (lease, warn, end, patience_is) in
        [(60, 47_000, 52_000, 66_000), (10, 7_500, 8_500, 11_000), (5, 3_750, 4_250, 5_500)]
    {
        let deadline = Deadline::of(at(100), secs(lease));
        let after = |moment: Moment| moment.since(at(100)).as_millis();
        assert_eq!((after(deadline.warn), after(deadline.end)), (warn, end), "{lease}");
        assert_eq!(patience(secs(lease)).as_millis(), patience_is, "{lease}");
        assert!(deadline.is_open(at(100)) && !deadline.is_open(deadline.warn));
    }
    assert_eq!(Deadline::of(at(1), Duration::MAX), Deadline::of(at(1), MAX_LEASE), "whatever a region says");
}

proptest! {
    /// Whatever each clock runs at within a tenth, and however long heartbeat and grant were on their way.
    #[test]
    fn clocks_that_run_wrong_by_a_tenth_are_allowed_for(
        lease in 5_000_u64..3_600_000, device in 900_u64..=1100, region in 900_u64..=1100, way in 0_u64..60_000,
    ) {
        let lease = Duration::from_millis(lease);
        let real = |counted: Duration, rate: u64| counted.as_nanos() * 1000 / u128::from(rate);
        let works = real(Deadline::of(Moment(0), lease).end.since(Moment(0)), device);
        let waits = u128::from(way) * 1_000_000 + real(patience(lease), region);
        prop_assert!(works < waits, "{works} {waits}");
    }

    #[test]
    fn a_watchdog_never_ends_later_than_it_was_told_and_never_comes_back(
        steps in proptest::collection::vec((0_u64..20, proptest::option::of(0_u64..20)), 1..60),
    ) {
        let (mut now, mut latest) = (at(0), Deadline::of(at(0), secs(10)));
        let mut dog = Watchdog::new(latest, now);
        let mut over = false;
        for (pass, asked_ago) in steps {
            now = now.plus(Duration::from_millis(pass * 500));
            if let Some(ago) = asked_ago {
                let asked = Moment(now.0.saturating_sub(ago * SECOND));
                let deadline = Deadline::of(asked, secs(10));
                let renewed = dog.renew(deadline, now);
                prop_assert!(!(over && renewed), "what is over stays over");
                latest = if renewed { latest.max(deadline) } else { latest };
            }
            let act = dog.act(now);
            over |= act == Act::Kill;
            prop_assert_eq!(act == Act::Kill, over);
            prop_assert!(over || now < latest.end);
            prop_assert!(over || dog.next() > now, "it is looked again later");
        }
    }
}

#[test]
fn programs_are_asked_to_end_once_and_again_only_after_a_renewal() {
    let mut dog = Watchdog::new(Deadline::of(at(0), secs(60)), at(0));
    assert_eq!(dog.act(at(46)), Act::Nothing);
    assert_eq!([dog.act(at(47)), dog.act(at(48))], [Act::Warn, Act::Nothing]);
    assert!(dog.renew(Deadline::of(at(40), secs(60)), at(49)));
    assert_eq!([dog.act(at(50)), dog.act(at(88)), dog.act(at(92))], [Act::Nothing, Act::Warn, Act::Kill]);
    assert!(!dog.renew(Deadline::of(at(92), secs(60)), at(92)), "a lease that is over is over");
    assert_eq!(dog.act(at(93)), Act::Kill);
    // A deadline of another machine, or garbage.
    let mut far = Watchdog::new(Deadline { warn: Moment(u64::MAX), end: Moment(u64::MAX) }, at(5));
    assert_eq!(far.act(at(5).plus(MAX_LEASE)), Act::Kill);
}

#[test]
fn who_releases_waits_for_what_it_granted_and_for_what_others_may_have() {
    let (claim, other) = (Uid::from("c"), Uid::from("o"));
    let mut grants = Grants::new(at(100), secs(10), secs(20));
    assert_eq!(grants.revoke(&other, Epoch(1), at(100)), secs(22), "of the longest lease before");
    assert!(grants.grant(&claim, Epoch(1), at(120)));
    assert_eq!(grants.left(&claim, at(121)), secs(10));
    assert_eq!(grants.revoke(&claim, Epoch(1), at(121)), secs(10));
    assert!(!grants.grant(&claim, Epoch(1), at(122)), "it is to be released");
    assert_eq!(grants.revoke(&claim, Epoch(1), at(131)), Duration::ZERO);
    grants.restore(&claim, Epoch(1));
    assert!(grants.grant(&claim, Epoch(1), at(132)), "it stayed");
    assert!(!grants.grant(&claim, Epoch(2), at(133)), "another epoch while this one is held");
    assert!(!grants.grant(&claim, Epoch(0), at(200)), "an older one, ever");
    assert!(grants.grant(&claim, Epoch(2), at(143)));
    assert_eq!(grants.revoke(&claim, Epoch(3), at(145)), secs(9), "before it was granted");
    assert!(!grants.grant(&claim, Epoch(3), at(160)), "nor after that");
    grants.retain(at(150), |_| false);
    assert_eq!(grants.left(&claim, at(150)), secs(4), "what is held is not forgotten");
    grants.retain(at(154), |_| false);
    assert!(grants.grant(&claim, Epoch(1), at(154)));
}

#[test]
fn a_device_counts_only_answers_to_what_it_asked_in_this_session() {
    let claims = [(Uid::from("a"), Epoch(3)), (Uid::from("b"), Epoch(7))];
    let mut holder = Holder::default();
    holder.ask(1, at(10));
    holder.ask(2, at(20));
    assert!(!holder.granted(3, secs(60), claims.clone(), at(21)));
    assert!(holder.granted(1, secs(60), claims.clone(), at(30)));
    assert_eq!(holder.deadline(&claims, at(30)), Some(Deadline::of(at(10), secs(60))), "from when it was sent");
    assert!(holder.granted(2, secs(60), claims[..1].to_vec(), at(31)));
    assert_eq!(holder.deadline(&claims, at(31)), Some(Deadline::of(at(10), secs(60))), "of all the first");
    assert_eq!(holder.deadline(&claims[..1], at(31)), Some(Deadline::of(at(20), secs(60))));
    assert_eq!(holder.deadline(&[(Uid::from("a"), Epoch(4))], at(31)), None, "another epoch");
    assert_eq!(holder.deadline(&claims, at(62)), None, "over");
    holder.begin_session();
    assert!(!holder.granted(2, secs(60), claims.clone(), at(63)), "of an earlier session");
    holder.retain(|claim| claim.as_str() == "a");
    assert_eq!(holder.deadline(&claims, at(30)), None);
}

#[test]
fn a_claim_says_who_may_write_it() {
    let claim = |annotations: Value| json!({"metadata": {"annotations": annotations}});
    let of = |annotations: Value| {
        let claim = claim(annotations);
        let tenure = Tenure::of_claim(&claim);
        tenure.map(|one| (one.device.map(str::to_owned), one.epoch.0, one.before.map(|epoch| epoch.0)))
    };
    assert_eq!(of(json!({CLAIM_DEVICE: "nas"})), None, "one that stays");
    assert_eq!(of(json!({CLAIM_DEVICE: "nas", CLAIM_EPOCH: "7"})), Some((Some("nas".into()), 7, None)));
    assert_eq!(of(json!({CLAIM_EPOCH: "7", CLAIM_EPOCH_BEFORE: "3"})), Some((None, 7, Some(3))));
    assert_eq!(VolumePolicy::of_claim(&claim(json!({VOLUME_POLICY_ANNOTATION: "Move"}))), VolumePolicy::Move);
    assert_eq!(VolumePolicy::of_claim(&json!({})), VolumePolicy::Keep);
}

#[test]
fn authority_is_written_and_read() {
    let authority = Authority { nonce: "n".into(), server: 2, term: 9, lease: secs(30) };
    let object = authority.write(Some(json!({"metadata": {"uid": "u"}, "data": {"nonce": "old", "odd": "x"}})));
    assert_eq!(Authority::read(&object), authority);
    assert_eq!(object["metadata"]["uid"], "u");
    assert_eq!(Authority::read(&json!({})).lease, MAX_LEASE, "of what nobody knows, the longest");
}
