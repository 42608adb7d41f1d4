//! One question to one name server, for the addresses of a name (RFC 1035 section 4).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use super::within;

/// How long one try may take, and how many there are: a lost packet is no finding.
const TRY: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
/// The largest answer over UDP that a server may send to who says no size, and some.
const MAX_UDP: usize = 4096;
/// Addresses of one answer that count.
const MAX_ADDRESSES: usize = 32;

const A: u16 = 1;
const AAAA: u16 = 28;
const IN: u16 = 1;
const HEADER: usize = 12;

/// What a server says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// These addresses; none is possible.
    Addresses(Vec<IpAddr>),
    /// There is no such name (NXDOMAIN).
    NoSuchName,
    /// Another code (RFC 6895).
    Failed(u8),
}

/// Asks for both families; the error says what did not work.
pub(super) async fn addresses(server: SocketAddr, name: &str) -> Result<Answer, String> {
    let mut found = Vec::new();
    for kind in [A, AAAA] {
        match ask(server, name, kind).await? {
            Answer::Addresses(some) => found.extend(some),
            other => return Ok(other),
        }
    }
    Ok(Answer::Addresses(found))
}

async fn ask(server: SocketAddr, name: &str, kind: u16) -> Result<Answer, String> {
    let mut problem = format!("no answer within {} s", (TRY * TRIES as u32).as_secs());
    for _ in 0..TRIES {
        let query = encode(id(), name, kind).ok_or_else(|| format!("{name:?} cannot be asked for"))?;
        let answer = match within(TRY, over_udp(server, &query)).await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => {
                problem = error.to_string();
                continue;
            }
            None => continue,
        };
        match decode(&query, &answer) {
            Some((Answer::Addresses(_), true)) => {}
            Some((answer, _)) => return Ok(answer),
            None => {
                "its answer cannot be read".clone_into(&mut problem);
                continue;
            }
        }
        // It has more to say, or wants to see that the question comes from where it says.
        match within(TRY, over_tcp(server, &query)).await {
            Some(Ok(answer)) => match decode(&query, &answer) {
                Some((answer, _)) => return Ok(answer),
                None => "its answer over TCP cannot be read".clone_into(&mut problem),
            },
            Some(Err(error)) => problem = format!("over TCP: {error}"),
            None => "no answer over TCP".clone_into(&mut problem),
        }
    }
    Err(problem)
}

fn id() -> u16 {
    u16::from_le_bytes([uuid::Uuid::new_v4().as_bytes()[0], uuid::Uuid::new_v4().as_bytes()[1]])
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut answer).await?;
        // What comes late of a try before is passed over.
        if length >= HEADER && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn encode(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut query = id.to_be_bytes().to_vec();
    // No recursion is asked for: the server is the zone's own. One question.
    query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        query.push(length);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend(IN.to_be_bytes());
    (query.len() <= HEADER + 255 + 4).then_some(query)
}

/// What an answer says, and whether it was cut short; `None` of what is no answer to the query.
fn decode(query: &[u8], answer: &[u8]) -> Option<(Answer, bool)> {
    let number = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let flags = number(2)?;
    let is_response = flags & 0x8000 != 0;
    if !is_response || answer.get(..2)? != query.get(..2)? {
        return None;
    }
    let cut = flags & 0x0200 != 0;
    match u8::try_from(flags & 0xf).ok()? {
        0 => {}
        3 => return Some((Answer::NoSuchName, cut)),
        code => return Some((Answer::Failed(code), cut)),
    }
    let mut at = HEADER;
    for _ in 0..number(4)? {
        at = after_name(answer, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..number(6)? {
        at = after_name(answer, at)?;
        let (kind, class, length) = (number(at)?, number(at + 2)?, usize::from(number(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        if class == IN && found.len() < MAX_ADDRESSES {
            match kind {
                A => found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
                AAAA => found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
                _ => {}
            }
        }
    }
    Some((Answer::Addresses(found), cut))
}

/// Where a name ends: at its root, or at a pointer (RFC 1035 section 4.1.4).
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(query: &[u8], flags: u16, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = query.to_vec();
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        out[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        for (kind, data) in records {
            out.extend([0xc0, 12]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 60]);
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(*data);
        }
        out
    }

    #[test]
    fn addresses_are_read_of_an_answer_and_of_nothing_else() {
        let query = encode(7, "notes.alice.example.test", A).expect("a query");
        let both: [(u16, &[u8]); 3] = [(5, &[0]), (A, &[192, 0, 2, 1]), (AAAA, &[0x20; 16])];
        let read = decode(&query, &answer(&query, 0x8400, &both));
        let addresses = vec![IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x20_u8; 16])];
        assert_eq!(read, Some((Answer::Addresses(addresses), false)));
        assert_eq!(decode(&query, &answer(&query, 0x8403, &[])), Some((Answer::NoSuchName, false)));
        assert_eq!(decode(&query, &answer(&query, 0x8405, &[])), Some((Answer::Failed(5), false)));
        assert_eq!(decode(&query, &answer(&query, 0x8600, &[])), Some((Answer::Addresses(vec![]), true)));
        assert_eq!(decode(&query, &answer(&query, 0x0400, &[])), None, "no response");
        assert_eq!(decode(&query, &answer(&encode(8, "a.b", A).expect("a query"), 0x8400, &[])), None, "another id");
        assert_eq!(decode(&query, &answer(&query, 0x8400, &[(A, &[1, 2])])), None);
        assert_eq!(encode(1, "a..b", A), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&[0; 12], &bytes);
            let mut like = bytes;
            like.splice(0..0, [0, 7, 0x84, 0, 0, 1, 0, 3, 0, 0, 0, 0]);
            let _ = decode(&[0, 7], &like);
        }
    }
}
