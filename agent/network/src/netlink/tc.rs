//! Messages of rtnetlink(7) for queueing disciplines (`include/uapi/linux/pkt_sched.h`): the token bucket at the root of a link.

use super::{Batch, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, attributes, u32_at};

pub(crate) const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
pub(crate) const RTM_GETQDISC: u16 = 38;

/// The notification group that tells of queueing disciplines, as a mask for `bind`.
pub(crate) const GROUP_TC: u32 = 1 << 3;

const TC_H_ROOT: u32 = 0xffff_ffff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// So that no table of sizes is asked for.
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// Length of `struct tcmsg`.
const TCMSG: usize = 20;
/// Length of `struct tc_tbf_qopt`, and where in it are the rate and the limit.
const TBF_QOPT: usize = 36;
const TBF_LINKLAYER: usize = 1;
const TBF_RATE: usize = 8;
const TBF_LIMIT: usize = 24;
const TBF: &str = "tbf";
/// Marks our disciplines (`tc qdisc show` has them as `4872:`).
const HANDLE: u32 = 0x4872_0000;

/// A token bucket filter, tc-tbf(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tbf {
    /// Bytes in a second.
    pub(crate) rate: u64,
    /// Bytes that may pass at once.
    pub(crate) burst: u32,
    /// Bytes that wait; more are dropped.
    pub(crate) limit: u32,
}

/// What is at the root of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// The link.
    pub(crate) index: u32,
    /// Rate and limit, where it is a token bucket of ours. The kernel rounds the burst, so it is not compared.
    pub(crate) ours: Option<(u64, u32)>,
}

fn tcmsg(index: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut fixed = [0; TCMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    fixed
}

/// Puts a token bucket at the root of a link, in the place of whatever is there; one of ours is changed without losing what waits in it.
pub(crate) fn set_root(batch: &mut Batch, index: u32, tbf: Tbf) {
    let mut parameters = [0; TBF_QOPT];
    parameters[TBF_LINKLAYER] = TC_LINKLAYER_ETHERNET;
    let rate = u32::try_from(tbf.rate).unwrap_or(u32::MAX);
    parameters[TBF_RATE..TBF_RATE + 4].copy_from_slice(&rate.to_ne_bytes());
    parameters[TBF_LIMIT..TBF_LIMIT + 4].copy_from_slice(&tbf.limit.to_ne_bytes());
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    batch.push("limit a link's bandwidth", RTM_NEWQDISC, flags, &tcmsg(index, HANDLE, TC_H_ROOT), |a| {
        a.str(TCA_KIND, TBF).nest(TCA_OPTIONS, &[], |a| {
            a.bytes(TCA_TBF_PARMS, &parameters).u32(TCA_TBF_BURST, tbf.burst);
            if tbf.rate > u64::from(u32::MAX) {
                a.bytes(TCA_TBF_RATE64, &tbf.rate.to_ne_bytes());
            }
        });
    });
}

/// Takes away what limits a link.
pub(crate) fn remove_root(batch: &mut Batch, index: u32) {
    batch.push("lift a link's limit", RTM_DELQDISC, NLM_F_ACK, &tcmsg(index, 0, TC_H_ROOT), |_| {});
}

/// The discipline in a message, where it is the root of its link.
pub(crate) fn parse_root(payload: &[u8]) -> Option<Root> {
    let (index, handle, parent) = (u32_at(payload, 4)?, u32_at(payload, 8)?, u32_at(payload, 12)?);
    let (mut is_tbf, mut rate, mut limit) = (false, None, None);
    for (kind, value) in attributes(payload.get(TCMSG..)?) {
        match kind {
            TCA_KIND => is_tbf = value.strip_suffix(&[0]).unwrap_or(value) == TBF.as_bytes(),
            TCA_OPTIONS => {
                for (kind, value) in attributes(value) {
                    match kind {
                        TCA_TBF_PARMS => {
                            rate = rate.or(u32_at(value, TBF_RATE).map(u64::from));
                            limit = u32_at(value, TBF_LIMIT);
                        }
                        TCA_TBF_RATE64 => rate = value.try_into().ok().map(u64::from_ne_bytes),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let ours = (is_tbf && handle == HANDLE).then_some(rate.zip(limit)).flatten();
    (parent == TC_H_ROOT).then_some(Root { index, ours })
}

/// Whether a notification tells that disciplines changed.
pub(crate) fn is_change(kind: u16) -> bool {
    matches!(kind, RTM_NEWQDISC | RTM_DELQDISC)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::netlink::messages;

    #[test]
    fn token_buckets_read_back_also_above_four_gigabytes() {
        for rate in [125, 4_000_000_000, 5_000_000_000] {
            let mut batch = Batch::new();
            set_root(&mut batch, 9, Tbf { rate, burst: 3000, limit: 9000 });
            let message = messages(batch.bytes()).next().unwrap();
            assert_eq!(parse_root(message.payload), Some(Root { index: 9, ours: Some((rate, 9000)) }));
        }
    }

    #[test]
    fn another_ones_discipline_is_not_ours() {
        let mut batch = Batch::new();
        for handle in [0, HANDLE + 0x1_0000] {
            batch.push("x", RTM_NEWQDISC, 0, &tcmsg(3, handle, TC_H_ROOT), |a| {
                a.str(TCA_KIND, TBF);
            });
        }
        batch.push("x", RTM_NEWQDISC, 0, &tcmsg(3, HANDLE, HANDLE), |_| {});
        let read: Vec<_> = messages(batch.bytes()).map(|m| parse_root(m.payload)).collect();
        let foreign = Some(Root { index: 3, ours: None });
        assert_eq!(read, [foreign, foreign, None]);
    }
}
