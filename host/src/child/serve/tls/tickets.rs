//! Session tickets, sealed with the master's keys: what one generation has begun, any other can resume.
//!
//! A ticket is the key's name, a random nonce, and the session under ChaCha20-Poly1305 with the name as associated data.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

use crate::control::secrets::{ServerTickets, TicketKey, TicketKeys};

/// Longer than a session is: such a ticket is not ours, and not worth a decryption.
const MAX_TICKET: usize = 8 * 1024;
/// Longer is allowed to no ticket (RFC 8446 4.6.1).
const MAX_LIFETIME: u32 = 7 * 24 * 3600;

/// The ticket keys of all servers, as the master last sent them.
#[derive(Default)]
pub struct Tickets(Mutex<HashMap<String, Arc<Keys>>>);

impl Tickets {
    /// Takes new keys over, for sessions from now on.
    pub fn update(&self, servers: Vec<ServerTickets>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ServerTickets { server, keys } in servers {
            let keys = Turn::new(&keys);
            *all.entry(server).or_default().0.write().unwrap_or_else(PoisonError::into_inner) = keys.map(Arc::new);
        }
    }

    /// What makes and opens the tickets of `server`. Without keys, until they come, no client is given any.
    pub fn of(&self, server: &str, rotation: Duration) -> Arc<dyn ProducesTickets> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(server.into()).or_default().clone();
        let lifetime = u32::try_from(rotation.as_secs()).unwrap_or(MAX_LIFETIME).min(MAX_LIFETIME);
        Arc::new(Sealer { keys, lifetime, random: SystemRandom::new() })
    }
}

/// The newest keys of one server.
#[derive(Default)]
struct Keys(RwLock<Option<Arc<Turn>>>);

struct Turn {
    current: Key,
    others: [Key; 2],
}

struct Key {
    name: [u8; TicketKey::NAME],
    aead: LessSafeKey,
}

impl Key {
    fn new(key: &TicketKey) -> Option<Key> {
        let aead = UnboundKey::new(&CHACHA20_POLY1305, &key.secret[..]).ok()?;
        Some(Key { name: key.name, aead: LessSafeKey::new(aead) })
    }
}

impl Turn {
    fn new(TicketKeys { previous, current, next }: &TicketKeys) -> Option<Turn> {
        Some(Turn { current: Key::new(current)?, others: [Key::new(previous)?, Key::new(next)?] })
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.others)
    }
}

struct Sealer {
    keys: Arc<Keys>,
    lifetime: u32,
    random: SystemRandom,
}

impl Sealer {
    fn turn(&self) -> Option<Arc<Turn>> {
        self.keys.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl ProducesTickets for Sealer {
    fn enabled(&self) -> bool {
        true
    }

    /// One turn: a ticket from the last moment of its key's turn is opened for the whole of the next.
    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let Turn { current, .. } = &*self.turn()?;
        // At random, as several processes seal with the same key: 96 bits do for 2^32 tickets, far more than a turn sees.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let head = [&current.name[..], &nonce].concat();
        let mut ticket = Vec::with_capacity(head.len() + session.len() + CHACHA20_POLY1305.tag_len());
        ticket.extend_from_slice(&head);
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut ticket[head.len()..];
        let tag = current.aead.seal_in_place_separate_tag(nonce, Aad::from(current.name), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<{ TicketKey::NAME }>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let turn = self.turn()?;
        // The name is no secret.
        let key = turn.all().find(|key| key.name == *name)?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = key.aead.open_in_place(nonce, Aad::from(key.name), &mut session).ok()?.len();
        session.truncate(len);
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn key(byte: u8) -> TicketKey {
        TicketKey { name: [byte; TicketKey::NAME], secret: Zeroizing::new([byte; TicketKey::SECRET]) }
    }

    fn turn(first: u8) -> Vec<ServerTickets> {
        let keys = TicketKeys { previous: key(first), current: key(first + 1), next: key(first + 2) };
        vec![ServerTickets { server: "a".into(), keys }]
    }

    fn process(first: u8) -> (Tickets, Arc<dyn ProducesTickets>) {
        let tickets = Tickets::default();
        let sealer = tickets.of("a", Duration::from_secs(3600));
        tickets.update(turn(first));
        (tickets, sealer)
    }

    #[test]
    fn another_process_opens_a_ticket_for_one_turn_at_least_and_two_at_most() {
        let (_, old) = process(1);
        let ticket = old.encrypt(b"session").unwrap();
        let (tickets, new) = process(1);
        assert_eq!(new.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        tickets.update(turn(2));
        assert_eq!(new.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        tickets.update(turn(3));
        assert_eq!(new.decrypt(&ticket), None);
        assert_eq!(new.lifetime(), 3600);
    }

    #[test]
    fn a_process_that_has_not_heard_of_a_turn_opens_what_the_others_seal() {
        let (_, early) = process(2);
        let (_, late) = process(1);
        assert_eq!(late.decrypt(&early.encrypt(b"s").unwrap()).as_deref(), Some(&b"s"[..]));
        assert_eq!(early.decrypt(&late.encrypt(b"s").unwrap()).as_deref(), Some(&b"s"[..]));
    }

    #[test]
    fn no_two_tickets_are_alike_and_a_changed_one_is_none() {
        let (_, sealer) = process(1);
        let ticket = sealer.encrypt(b"session").unwrap();
        assert_ne!(ticket, sealer.encrypt(b"session").unwrap());
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.decrypt(&changed), None, "{at}");
            assert_eq!(sealer.decrypt(&ticket[..at]), None, "{at}");
        }
        assert_eq!(sealer.decrypt(&vec![2; MAX_TICKET + 1]), None);
        let (tickets, other) = process(1);
        assert_eq!(tickets.of("b", Duration::MAX).decrypt(&ticket), None, "another server's key");
        assert_eq!(tickets.of("b", Duration::MAX).encrypt(b"s"), None, "no key has come");
        assert!(!format!("{other:?}").contains("2, 2"));
    }
}
