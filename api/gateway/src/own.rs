//! Names that lead to doors of this server itself: its API and its relay share the gateway's port, told apart by the server name.
//!
//! # Guarantees
//! TLS is not ended here: the door gets the socket, and the bytes that were read of it, and sees who called. What the gateway bounds of a
//! caller it bounds until then: places, the rate of new connections, the time for the hello. After that the connection is the door's: it
//! takes no place here, and neither silence nor the gateway's drain ends it.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{net::TcpStream, sync::mpsc, time::timeout};

use crate::{limits::Limits, metrics::Outcome};

/// A connection that a door of this server is to serve.
#[derive(Debug)]
pub struct Handed {
    /// The connection, of which [`Handed::hello`] was read.
    pub socket: TcpStream,
    /// Who calls; an IPv4 address is one.
    pub caller: SocketAddr,
    /// What was read: a whole ClientHello, and maybe more.
    pub hello: Vec<u8>,
}

/// The doors of this server, by the names that lead to them.
#[derive(Clone, Debug, Default)]
pub struct OwnDoors(HashMap<String, mpsc::Sender<Handed>>);

impl OwnDoors {
    /// From now on this name, in lower case and without a dot at the end, leads to this door. It comes before every Route's.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, door: &mpsc::Sender<Handed>) -> Self {
        self.0.insert(name.into(), door.clone());
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&mpsc::Sender<Handed>> {
        self.0.get(name)
    }
}

/// Hands a connection over. A door that takes none for as long as a hello may last has too much to do; the caller comes again.
pub(crate) async fn hand_over(door: &mpsc::Sender<Handed>, handed: Handed, limits: &Limits) -> Outcome {
    match timeout(limits.opening, door.send(handed)).await {
        Ok(Ok(())) => Outcome::Own,
        Ok(Err(_)) | Err(_) => Outcome::OwnBusy,
    }
}
