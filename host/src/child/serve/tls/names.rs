//! Which of a server's certificates a client sees: by the name that it asks for (SNI). A name itself comes before `*.` for all
//! names of that length below it, both in the order of the configuration; the first certificate is for all others. Of several
//! that fit, the first that the client can verify: an RSA certificate may stand behind an ECDSA one.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certified;
use crate::control::secrets::Certificate;

#[derive(Debug)]
pub struct ByName(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl ByName {
    pub fn new(certificates: &[Certificate], provider: &CryptoProvider) -> Result<ByName, rustls::Error> {
        let one =
            |certificate: &Certificate| Ok((certificate.names.clone(), Arc::new(certified(certificate, provider)?)));
        certificates.iter().map(one).collect::<Result<_, _>>().map(ByName)
    }

    /// All that fit, the best first.
    fn fitting(&self, asked: Option<&str>) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        // rustls gives names in lower case (it has checked them), and so are those of the certificates.
        let asked = asked.map(|name| name.trim_end_matches('.'));
        let has = move |names: &[String], fits: fn(&str, &str) -> bool| {
            asked.is_some_and(|asked| names.iter().any(|name| fits(name, asked)))
        };
        let exact = self.0.iter().filter(move |(names, _)| has(names, |name, asked| name == asked));
        let below = self.0.iter().filter(move |(names, _)| has(names, covers));
        let all = exact.chain(below).chain(self.0.first()).chain(&self.0);
        all.map(|(_, key)| key)
    }
}

/// A `*` stands for one label, the first (RFC 6125 6.4.3).
fn covers(pattern: &str, name: &str) -> bool {
    let rest = pattern.strip_prefix('*').filter(|rest| rest.starts_with('.'));
    rest.is_some_and(|rest| name.strip_suffix(rest).is_some_and(|label| !label.is_empty() && !label.contains('.')))
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let known = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.fitting(hello.server_name()).find(known).cloned()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, generate_simple_self_signed};
    use rustls::crypto::ring;
    use zeroize::Zeroizing;

    use super::*;

    fn certificate(names: &[&str]) -> Certificate {
        let rcgen::CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        let key: KeyPair = signing_key;
        Certificate {
            names: names.iter().map(ToString::to_string).collect(),
            chain: vec![cert.der().to_vec()],
            key: Zeroizing::new(key.serialize_der()),
        }
    }

    #[test]
    fn the_best_name_decides_and_the_first_certificate_is_for_all_others() {
        let all = [&["a.example"][..], &["*.example", "b.example"], &["c.example", "*.c.example"], &["b.example"]];
        let all: Vec<Certificate> = all.into_iter().map(certificate).collect();
        let names = ByName::new(&all, &ring::default_provider()).unwrap();
        let chosen = |asked| {
            let key = names.fitting(asked).next().unwrap();
            names.0.iter().position(|(_, own)| Arc::ptr_eq(own, key)).unwrap()
        };
        for (asked, expected) in [
            (Some("a.example"), 0),
            (Some("b.example"), 1),
            (Some("c.example"), 2),
            (Some("c.example."), 2),
            (Some("d.example"), 1),
            (Some("x.c.example"), 2),
            (Some("x.y.c.example"), 0),
            (Some("example"), 0),
            (Some("other"), 0),
            (None, 0),
        ] {
            assert_eq!(chosen(asked), expected, "{asked:?}");
        }
    }
}
