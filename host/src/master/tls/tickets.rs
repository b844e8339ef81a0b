//! The keys of session tickets, one turn of three per server. They are the master's, so that a session that one generation
//! began is resumed by the next, and by one that drains.
//!
//! At a rotation what was next becomes current, and current previous. A ticket is opened for two turns from when its key
//! became current: one sealed at the very end of the first has the whole second before it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Certificates;
use crate::control::secrets::{self, SecretError, ServerTickets, TicketKey, TicketKeys};
use crate::master::resume::{Fd, Luggage};

#[derive(Debug)]
pub struct Tickets {
    servers: BTreeMap<String, TicketKeys>,
    rotated: Instant,
    period: Duration,
}

/// The keys as another program of this process goes on with them.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedTickets {
    keys: Fd,
    age: Duration,
    period: Duration,
}

impl SavedTickets {
    pub fn resume(self) -> Result<Tickets, SecretError> {
        let servers = secrets::open_tickets(self.keys.copy()?)?;
        let servers = servers.into_iter().map(|tickets| (tickets.server, tickets.keys)).collect();
        let now = Instant::now();
        Ok(Tickets { servers, rotated: now.checked_sub(self.age).unwrap_or(now), period: self.period })
    }
}

impl Tickets {
    /// The keys go in the sealed memory that `sealed` is, which must stay open until then.
    pub fn save(&self, sealed: &OwnedFd, luggage: &mut Luggage) -> std::io::Result<SavedTickets> {
        Ok(SavedTickets { keys: luggage.put(sealed)?, age: self.rotated.elapsed(), period: self.period })
    }

    pub fn new() -> Tickets {
        Tickets { servers: BTreeMap::new(), rotated: Instant::now(), period: Duration::MAX }
    }

    /// Makes keys for servers of a set that have none yet, and takes over how long a turn is.
    pub fn cover(&mut self, certificates: &Certificates) -> Result<(), SecretError> {
        if self.servers.is_empty() {
            self.rotated = Instant::now();
        }
        self.period = certificates.rotation;
        for server in certificates.servers() {
            if !self.servers.contains_key(server) {
                let keys = TicketKeys { previous: fresh()?, current: fresh()?, next: fresh()? };
                self.servers.insert(server.into(), keys);
            }
        }
        Ok(())
    }

    /// Forgets the keys of all other servers.
    pub fn retain(&mut self, is_used: impl Fn(&str) -> bool) {
        self.servers.retain(|server, _| is_used(server));
    }

    /// When the next turn begins; nothing while there are no keys.
    pub fn deadline(&self) -> Option<Instant> {
        if self.servers.is_empty() { None } else { self.rotated.checked_add(self.period) }
    }

    /// Begins the next turn. Without fresh keys the old ones stay, and it is tried again after a turn.
    pub fn rotate(&mut self) -> Result<(), SecretError> {
        self.rotated = Instant::now();
        let mut turned = BTreeMap::new();
        for (server, keys) in &self.servers {
            let next = fresh()?;
            let keys = TicketKeys { previous: keys.current.clone(), current: keys.next.clone(), next };
            turned.insert(server.clone(), keys);
        }
        self.servers = turned;
        Ok(())
    }

    /// For children.
    pub fn seal(&self) -> Result<OwnedFd, SecretError> {
        let all =
            self.servers.iter().map(|(server, keys)| ServerTickets { server: server.clone(), keys: keys.clone() });
        secrets::seal_tickets(&all.collect::<Vec<_>>())
    }
}

fn fresh() -> Result<TicketKey, SecretError> {
    let mut key = TicketKey { name: [0; TicketKey::NAME], secret: Zeroizing::new([0; TicketKey::SECRET]) };
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(std::io::Error::other);
    random(&mut key.name)?;
    random(&mut key.secret[..])?;
    Ok(key)
}
