//! The one question asked of nf_tables directly: is the table there? (`include/uapi/linux/netfilter/nf_tables.h`)
//! Rules themselves are written by the `nft` program, whose language people can read.

use std::io;

use super::{Batch, NLM_F_ACK, attributes, socket};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 1;
/// Type of the notification that a table was deleted.
pub(crate) const NFT_MSG_DELTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 2;
const NFTA_TABLE_NAME: u16 = 1;
const NFPROTO_INET: u8 = 1;
/// Length of `struct nfgenmsg`: family, version, resource id.
const NFGENMSG: usize = 4;

/// The name of the table in a table message of nf_tables.
pub(crate) fn table_name(payload: &[u8]) -> Option<&str> {
    attributes(payload.get(NFGENMSG..)?).find(|(kind, _)| *kind == NFTA_TABLE_NAME).and_then(|(_, name)| {
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        std::str::from_utf8(&name[..end]).ok()
    })
}

/// Whether the table `name` of family `inet` is there.
pub(crate) fn table_exists(name: &str) -> io::Result<bool> {
    let mut batch = Batch::new();
    batch.push("look up a firewall table", NFT_MSG_GETTABLE, NLM_F_ACK, &[NFPROTO_INET, 0, 0, 0], |a| {
        a.str(NFTA_TABLE_NAME, name);
    });
    match socket::Socket::open(socket::Protocol::Netfilter, 0)?.transact(&batch)?.first() {
        Some(Err(e)) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Some(Err(e)) => Err(io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO))),
        Some(Ok(())) => Ok(true),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
