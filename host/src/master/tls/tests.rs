//! Which files are taken and which are not, when a certificate is spoken of, and how ticket keys turn.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm, date_time_ymd};

use tokio::time::Instant;

use super::*;
use crate::config::{Certificate, Server};
use crate::control::secrets::{open_certificates, open_tickets};

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        Files { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A certificate with its key, as files.
    fn make(&self, names: &[&str], last: (i32, u8, u8), algorithm: &'static SignatureAlgorithm) -> Certificate {
        let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(last.0, last.1, last.2);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let cert = self.write(&format!("cert-{}", key.public_key_raw()[5]), &params.self_signed(&key).unwrap().pem());
        let key = self.write(&format!("key-{}", key.public_key_raw()[5]), &key.serialize_pem());
        Certificate { cert, key }
    }

    fn valid(&self) -> Certificate {
        self.make(&["a.example"], (2999, 1, 1), &PKCS_ED25519)
    }
}

fn config(tls: Vec<Certificate>) -> Config {
    Config { server: vec![Server { tls, ..Server::new("web", &["127.0.0.1:0"]) }], ..Config::default() }
}

#[track_caller]
fn refused(cert: &Path, key: &Path) -> Failure {
    let files = Certificate { cert: cert.into(), key: key.into() };
    let failure = Certificates::read(&config(vec![files])).unwrap_err();
    assert_eq!(failure.stage, Stage::Tls);
    assert!(failure.error.contains("`web`"), "{failure}");
    failure
}

#[test]
fn certificates_are_read_with_their_names_and_sealed_for_children() {
    let files = Files::new();
    let one = files.make(&["A.Example", "*.b.example", "192.0.2.1"], (2999, 1, 1), &PKCS_ED25519);
    let two = files.make(&[], (2999, 1, 1), &PKCS_ECDSA_P384_SHA384);
    let read = Certificates::read(&config(vec![one.clone(), two])).unwrap().unwrap();
    let names: Vec<_> = read.status().into_iter().map(|status| status.names).collect();
    assert_eq!(names, [vec!["a.example", "*.b.example", "192.0.2.1"], vec![]]);
    let sealed = open_certificates(read.lend().unwrap()).unwrap();
    assert_eq!(sealed[0].server, "web");
    assert_eq!(sealed[0].certificates.len(), 2);
    // Addresses cannot be asked for by name.
    assert_eq!(sealed[0].certificates[0].names, ["a.example", "*.b.example"]);
    assert_eq!(read.lend().and_then(|fd| fd.try_clone()).map(|fd| open_certificates(fd).unwrap()).unwrap(), sealed);
    assert!(Certificates::read(&config(Vec::new())).unwrap().is_none());
}

#[test]
fn what_cannot_be_used_is_refused_with_its_file_and_reason() {
    let files = Files::new();
    let Certificate { cert, key } = files.valid();
    let other = files.valid();
    let says = |failure: Failure, path: &Path, why: &str| {
        assert!(failure.error.contains(path.to_str().unwrap()) && failure.error.contains(why), "{failure}");
    };
    let absent = files.dir.path().join("absent");
    says(refused(&absent, &key), &absent, "No such file");
    says(refused(&cert, &absent), &absent, "No such file");
    says(refused(&key, &key), &key, "no certificate");
    says(refused(&cert, &cert), &cert, "no private key");
    let mismatch = refused(&cert, &other.key);
    assert!(mismatch.hint.as_ref().unwrap().contains("first"), "{mismatch}");
    says(mismatch, &other.key, "is not the key of");
    let empty = files.write("empty", "");
    says(refused(&empty, &key), &empty, "no certificate");
    let text = std::fs::read_to_string(&cert).unwrap();
    let cut = files.write("cut", &text[..text.len() - 40]);
    says(refused(&cut, &key), &cut, "not valid PEM");
    let noise = files.write("noise", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    says(refused(&noise, &key), &noise, "is broken");
    let pkcs8 = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let older = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    for text in [pkcs8, older] {
        let key = files.write("a.key", text);
        let failure = refused(&cert, &key);
        assert!(failure.hint.as_ref().is_some_and(|hint| hint.contains("openssl pkey -in")), "{failure}");
        says(failure, &key, "encrypted private key");
    }
    let long = files.write("long", &"x".repeat((1 << 20) + 1));
    says(refused(&long, &key), &long, "longer");
}

#[test]
fn a_broken_key_is_not_shown() {
    let files = Files::new();
    let Certificate { cert, key } = files.valid();
    let text = std::fs::read_to_string(&key).unwrap();
    let secret = text.lines().nth(1).unwrap();
    let broken = files.write("broken", &text.replace(secret, &format!("{secret}%")));
    let failure = refused(&cert, &broken);
    assert!(!format!("{failure:?}").contains(&secret[..8]), "{failure:?}");
}

#[test]
fn the_end_of_a_certificate_is_told_two_weeks_ahead_and_refuses_nothing() {
    let files = Files::new();
    let day = |days: u64| UNIX_EPOCH + Duration::from_secs(days * 24 * 3600);
    // 2020-01-01.
    let end = day(18_262);
    let read = Certificates::read(&config(vec![files.make(&["a"], (2020, 1, 1), &PKCS_ED25519)])).unwrap().unwrap();
    let at = |now: SystemTime| read.facts[0].status(now);
    let status = at(end - NOTICE - Duration::from_secs(1));
    assert_eq!((status.validity, status.not_after.as_str()), (Validity::Valid, "2020-01-01T00:00:00Z"));
    assert_eq!(at(end - NOTICE).validity, Validity::ExpiresSoon);
    assert_eq!(at(end).validity, Validity::Expired);
    assert_eq!(at(day(10_000)).validity, Validity::NotYetValid);
    assert_eq!(
        (at(end - Duration::from_secs(60)).expires_in_s, at(end + Duration::from_secs(60)).expires_in_s),
        (60, -60)
    );
    assert_eq!(read.status()[0].validity, Validity::Expired);
}

#[test]
fn keys_turn_and_those_of_a_server_stay_for_the_next_set() {
    let files = Files::new();
    let read = |name: &str| {
        let server = Server { tls: vec![files.valid()], ..Server::new(name, &["127.0.0.1:0"]) };
        Certificates::read(&Config { server: vec![server], ..Config::default() }).unwrap().unwrap()
    };
    let mut tickets = Tickets::new();
    assert!(tickets.deadline().is_none());
    tickets.cover(&read("a")).unwrap();
    let keys = |tickets: &Tickets| open_tickets(tickets.seal().unwrap()).unwrap();
    let first = keys(&tickets);
    assert!(tickets.deadline().unwrap() > Instant::now() + Duration::from_secs(6 * 3600 - 60));
    tickets.cover(&read("a")).unwrap();
    assert_eq!(keys(&tickets), first);
    tickets.rotate().unwrap();
    let second = keys(&tickets);
    let (old, new) = (&first[0].keys, &second[0].keys);
    assert_eq!((&new.previous, &new.current), (&old.current, &old.next));
    assert!(![&old.previous, &old.current, &old.next].contains(&&new.next));
    tickets.cover(&read("b")).unwrap();
    tickets.retain(|server| server == "b");
    let third = keys(&tickets);
    assert_eq!((third.len(), third[0].server.as_str()), (1, "b"));
    assert_ne!(third[0].keys, *new);
}
