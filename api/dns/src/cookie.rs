//! DNS cookies (RFC 7873), in the form that servers of several makers share (RFC 9018): whoever returns one that this region gave has shown
//! to be at the address that the query came from. Pure.

use std::net::IpAddr;

use ring::hmac;

/// Bytes of a client's cookie.
const CLIENT: usize = 8;
/// Bytes of a server's cookie: version and reserved, time, hash.
const SERVER: usize = 16;
/// The version of RFC 9018, and its three reserved bytes.
const VERSION: [u8; 4] = [1, 0, 0, 0];
/// Seconds for which a cookie is good (RFC 9018 section 4.3).
const GOOD: i64 = 3600;
/// Seconds that another server's clock may be ahead (RFC 9018 section 4.3).
const AHEAD: i64 = 300;
/// Seconds after which a good cookie is replaced (RFC 9018 section 4.3).
const RENEW: i64 = 1800;
/// Seconds for which one secret makes cookies: a week. The one before is needed for an hour more, and is made anew from the master secret.
const EPOCH: u32 = 7 * 86_400;

/// What a query says of itself by its COOKIE option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// None.
    Nothing,
    /// The client's part alone, or with a server's part that is not good, or no longer.
    Client([u8; CLIENT]),
    /// A whole cookie that is good.
    Good([u8; CLIENT], [u8; SERVER]),
}

/// The option cannot be read: FORMERR (RFC 7873 section 5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Makes and checks cookies. Servers with one master secret take each other's.
pub(crate) struct Cookies(hmac::Key);

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies")
    }
}

impl Cookies {
    pub(crate) fn new(master: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, master))
    }

    /// What a query shows. `now` is in seconds.
    pub(crate) fn read(&self, option: Option<&[u8]>, ip: IpAddr, now: i64) -> Result<Shown, Malformed> {
        let Some(option) = option else { return Ok(Shown::Nothing) };
        let Some((client, server)) = option.split_first_chunk::<CLIENT>() else { return Err(Malformed) };
        if !(server.is_empty() || (8..=32).contains(&server.len())) {
            return Err(Malformed);
        }
        let whole = <&[u8; SERVER]>::try_from(server).ok().filter(|server| self.is_good(*client, server, ip, now));
        Ok(whole.map_or(Shown::Client(*client), |server| Shown::Good(*client, *server)))
    }

    fn is_good(&self, client: [u8; CLIENT], server: &[u8; SERVER], ip: IpAddr, now: i64) -> bool {
        let made = time_of(server);
        let age = age(made, now);
        let expected = self.make(client, ip, made);
        server[..4] == VERSION && (-AHEAD..=GOOD).contains(&age) && same(server, &expected)
    }

    /// The option of the answer to a query that showed this; `None` where the query had none.
    pub(crate) fn answer(&self, shown: Shown, ip: IpAddr, now: i64) -> Option<Vec<u8>> {
        let (client, server) = match shown {
            Shown::Nothing => return None,
            Shown::Good(client, server) if age(time_of(&server), now) < RENEW => (client, server),
            Shown::Good(client, _) | Shown::Client(client) => (client, self.make(client, ip, now as u32)),
        };
        Some([&client[..], &server].concat())
    }

    fn make(&self, client: [u8; CLIENT], ip: IpAddr, made: u32) -> [u8; SERVER] {
        server_cookie(&self.secret(made / EPOCH), client, ip, made)
    }

    /// The secret of an epoch.
    fn secret(&self, epoch: u32) -> [u8; 16] {
        let tag = hmac::sign(&self.0, &epoch.to_be_bytes());
        let mut secret = [0; 16];
        secret.copy_from_slice(&tag.as_ref()[..16]);
        secret
    }
}

fn time_of(server: &[u8; SERVER]) -> u32 {
    u32::from_be_bytes([server[4], server[5], server[6], server[7]])
}

/// Seconds since a time of 32 bits, which wraps (RFC 1982).
fn age(made: u32, now: i64) -> i64 {
    i64::from((now as u32).wrapping_sub(made) as i32)
}

/// In a time that does not tell how far they agree.
fn same(one: &[u8; SERVER], other: &[u8; SERVER]) -> bool {
    one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

/// RFC 9018 section 4.
fn server_cookie(secret: &[u8; 16], client: [u8; CLIENT], ip: IpAddr, made: u32) -> [u8; SERVER] {
    let mut cookie = [0; SERVER];
    cookie[..4].copy_from_slice(&VERSION);
    cookie[4..8].copy_from_slice(&made.to_be_bytes());
    let mut input = [&client, &cookie[..8]].concat();
    match ip.to_canonical() {
        IpAddr::V4(ip) => input.extend(ip.octets()),
        IpAddr::V6(ip) => input.extend(ip.octets()),
    }
    cookie[8..].copy_from_slice(&siphash(secret, &input).to_le_bytes());
    cookie
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012).
fn siphash(key: &[u8; 16], input: &[u8]) -> u64 {
    fn round(v: &mut [u64; 4]) {
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
    }
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut take = |block: u64| {
        v[3] ^= block;
        round(&mut v);
        round(&mut v);
        v[0] ^= block;
    };
    let (blocks, rest) = input.as_chunks::<8>();
    for block in blocks {
        take(u64::from_le_bytes(*block));
    }
    take((input.len() as u64) << 56 | word(rest));
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let all: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect();
        all.try_into().expect("the length")
    }

    /// RFC 9018 appendix A.
    #[test]
    fn cookies_are_those_of_the_rfc() {
        for (secret, client, ip, made, hash) in [
            ("e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", 0x5cf7_9f11, "1f8130c3eee29480"),
            (
                "dd3bdf9344b678b185a6f5cb60fca715",
                "22681ab97d52c298",
                "2001:db8:220:1:59de:d0f4:8769:82b8",
                0x5cf7_c579,
                "26556bd0934c72f8",
            ),
        ] {
            let cookie = server_cookie(&bytes(secret), bytes(client), ip.parse().expect("an address"), made);
            assert_eq!(cookie[8..], bytes::<8>(hash), "{client}");
            assert_eq!(cookie[..8], [&VERSION[..], &made.to_be_bytes()].concat());
        }
    }

    /// The vectors of SipHash's authors: key 00..0f, input 00..(n-1).
    #[test]
    fn the_hash_is_that_of_its_authors() {
        let key: [u8; 16] = std::array::from_fn(|at| at as u8);
        let input: Vec<u8> = (0..16).collect();
        for (length, expected) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5_u64),
        ] {
            assert_eq!(siphash(&key, &input[..length]), expected, "{length}");
        }
    }

    #[test]
    fn a_cookie_is_good_for_its_address_and_its_hour_at_every_server_of_the_region() {
        let (one, other, stranger) = (Cookies::new(&[7; 32]), Cookies::new(&[7; 32]), Cookies::new(&[8; 32]));
        let (ip, elsewhere): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        // Half an hour before the secret changes.
        let now = i64::from(EPOCH) * 3000 - 1800;
        let client = one.read(Some(&[1; 8]), ip, now).expect("well-formed");
        assert_eq!(client, Shown::Client([1; 8]));
        let cookie = one.answer(client, ip, now).expect("a cookie");
        let good = |cookies: &Cookies, ip, now| matches!(cookies.read(Some(&cookie), ip, now), Ok(Shown::Good(..)));
        assert!(good(&one, ip, now) && good(&other, ip, now + 3600) && good(&other, ip, now - 300));
        assert!(!good(&one, ip, now + 3601) && !good(&one, ip, now - 301) && !good(&one, elsewhere, now));
        assert!(!good(&stranger, ip, now));
        let shown = one.read(Some(&cookie), ip, now + 1800).expect("well-formed");
        assert_eq!(one.answer(shown, ip, now + 1799), Some(cookie.clone()), "kept");
        assert_ne!(one.answer(shown, ip, now + 1800), Some(cookie.clone()), "renewed");
        assert_eq!(one.answer(Shown::Nothing, ip, now), None);
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(one.read(Some(&vec![0; length]), ip, now), Err(Malformed), "{length} bytes");
        }
        for length in [16, 23, 40] {
            assert_eq!(one.read(Some(&vec![0; length]), ip, now), Ok(Shown::Client([0; 8])), "{length} bytes");
        }
    }
}
