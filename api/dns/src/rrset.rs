//! Record sets as they are on the wire.

use hickory_proto::{
    rr::{Name, RData, Record, RecordType, rdata::NULL},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

/// Numbers of types (IANA, "Resource Record (RR) TYPEs").
pub(crate) mod code {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const RRSIG: u16 = 46;
    pub(crate) const NSEC: u16 = 47;
    pub(crate) const DNSKEY: u16 = 48;
    pub(crate) const CDS: u16 = 59;
    pub(crate) const CDNSKEY: u16 = 60;
    /// In a list of types: there is no such name (RFC 9824).
    pub(crate) const NXNAME: u16 = 128;
    pub(crate) const ANY: u16 = 255;
}

/// The records of one type at one name, class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RrSet {
    /// The name on the wire, uncompressed, in the case in which it is answered.
    pub(crate) owner: Vec<u8>,
    pub(crate) kind: u16,
    pub(crate) ttl: u32,
    /// Each record's data, names in it uncompressed and in lower case. None is empty.
    pub(crate) data: Vec<Vec<u8>>,
}

impl RrSet {
    /// The records, to be written. None where the name is none.
    pub(crate) fn records(&self) -> Vec<Record> {
        let Ok(name) = Name::read(&mut BinDecoder::new(&self.owner)) else { return Vec::new() };
        let code = RecordType::from(self.kind);
        let data = self.data.iter().map(|data| RData::Unknown { code, rdata: NULL::with(data.clone()) });
        data.map(|data| Record::from_rdata(name.clone(), self.ttl, data)).collect()
    }
}

/// A name on the wire, uncompressed, its case kept.
pub(crate) fn wire(name: &Name) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 1);
    for label in name {
        out.push(label.len() as u8);
        out.extend(label);
    }
    out.push(0);
    out
}
