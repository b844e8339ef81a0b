//! How the admin page proves that it knows the token, and the server likewise, without sending it.
//!
//! Another program may take the port after the server has ended, while the page is still open. Therefore the page sends no
//! token: it signs each request, and takes no response that is not signed. A signature is good for one method, target and
//! host, so that a program on another port cannot pass it on, and for a minute.
//!
//! ```text
//! GET /debug/admin/challenge            {"instance":"...","challenge":"INSTANCE.MILLISECONDS.TAG"}
//! Authorization: Baton HOST CHALLENGE MAC(token, "baton request" method target HOST CHALLENGE)
//! Baton-Proof: MAC(token, "baton response" MAC)
//! ```
//!
//! MAC is HMAC-SHA256 in hexadecimal digits over the parts, joined by line feeds. The host is the one that the page was loaded
//! from, which must be one of the server's. Pure, but for the instance's random bytes.

use std::time::Duration;

use ring::hmac;

use super::token::{Token, hex};

/// How long a challenge is good for.
const LIFE: Duration = Duration::from_secs(60);

/// The scheme in `Authorization`.
pub const SCHEME: &str = "Baton";
/// The header with the server's proof.
pub const PROOF: &str = "baton-proof";

/// What a page signs.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub host: &'a str,
    pub challenge: &'a str,
    pub mac: &'a str,
}

/// The server's signature of its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof(String);

impl Proof {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fresh,
    /// Signed with the token, but the challenge is too old or another process's.
    Stale,
}

/// Makes challenges. Each process of the server has an instance of its own.
#[derive(Debug)]
pub struct Challenger {
    instance: String,
}

impl Challenger {
    pub fn new() -> Result<Challenger, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Challenger { instance: hex(&bytes) })
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Returns a challenge of the time `age` since the start of the process.
    pub fn challenge(&self, token: &Token, age: Duration) -> String {
        let ms = age.as_millis();
        format!("{}.{ms}.{}", self.instance, self.tag(token, &ms.to_string()))
    }

    fn tag(&self, token: &Token, ms: &str) -> String {
        mac(token, &["baton challenge", &self.instance, ms])
    }

    /// Returns whether the token has signed the request, with the proof for the response; `None` if it has not.
    pub fn verify(&self, token: &Token, signed: &Signed<'_>, age: Duration) -> Option<(Verdict, Proof)> {
        let Signed { method, target, host, challenge, mac: offered } = *signed;
        let expected = mac(token, &["baton request", method, target, host, challenge]);
        if !is_equal(&expected, offered) {
            return None;
        }
        let fresh = self.age_of(token, challenge).is_some_and(|then| then <= age && age - then <= LIFE);
        let verdict = if fresh { Verdict::Fresh } else { Verdict::Stale };
        Some((verdict, Proof(mac(token, &["baton response", &expected]))))
    }

    /// Returns when the challenge was made, or `None` if it is not one of this process.
    fn age_of(&self, token: &Token, challenge: &str) -> Option<Duration> {
        let mut parts = challenge.splitn(3, '.');
        let (instance, ms, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let own = instance == self.instance && is_equal(&self.tag(token, ms), tag);
        ms.parse().ok().filter(|_| own).map(Duration::from_millis)
    }
}

fn mac(token: &Token, parts: &[&str]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
    hex(hmac::sign(&key, parts.join("\n").as_bytes()).as_ref())
}

fn is_equal(left: &str, right: &str) -> bool {
    subtle::ConstantTimeEq::ct_eq(left.as_bytes(), right.as_bytes()).into()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The signature of a request, as the page makes it.
    pub fn request_mac(token: &Token, method: &str, target: &str, host: &str, challenge: &str) -> String {
        mac(token, &["baton request", method, target, host, challenge])
    }

    fn token(name: &str) -> Token {
        let dir = tempfile::tempdir().unwrap();
        Token::open(&dir.path().join(name)).unwrap()
    }

    fn sign<'a>(token: &Token, mac_of: &'a mut String, challenge: &'a str) -> Signed<'a> {
        *mac_of = mac(token, &["baton request", "GET", "/debug/admin/status", "localhost:9700", challenge]);
        Signed { method: "GET", target: "/debug/admin/status", host: "localhost:9700", challenge, mac: mac_of }
    }

    #[test]
    fn a_request_signed_with_the_token_passes_and_the_proof_is_of_it() {
        let (token, challenger, age) = (token("a"), Challenger::new().unwrap(), Duration::from_secs(7));
        let challenge = challenger.challenge(&token, age);
        let mut text = String::new();
        let signed = sign(&token, &mut text, &challenge);
        let (verdict, proof) = challenger.verify(&token, &signed, age + LIFE).unwrap();
        assert_eq!(verdict, Verdict::Fresh);
        assert_eq!(proof.as_str(), mac(&token, &["baton response", signed.mac]));
    }

    #[test]
    fn a_signature_is_for_one_request_alone() {
        let (token, challenger, age) = (token("a"), Challenger::new().unwrap(), Duration::ZERO);
        let challenge = challenger.challenge(&token, age);
        let mut text = String::new();
        let signed = sign(&token, &mut text, &challenge);
        for other in [
            Signed { method: "POST", ..signed },
            Signed { target: "/debug/admin/shutdown", ..signed },
            Signed { host: "localhost:9701", ..signed },
            Signed { challenge: "x", ..signed },
            Signed { mac: &signed.mac[1..], ..signed },
            Signed { mac: "", ..signed },
        ] {
            assert_eq!(challenger.verify(&token, &other, age), None, "{other:?}");
        }
        assert_eq!(challenger.verify(&self::token("b"), &signed, age), None, "another token");
    }

    #[test]
    fn an_old_or_foreign_challenge_is_stale() {
        let (token, challenger, age) = (token("a"), Challenger::new().unwrap(), Duration::from_secs(100));
        let forged = challenger.challenge(&token, age).replace(".100000.", ".100001.");
        let foreign = Challenger::new().unwrap().challenge(&token, age);
        let old = challenger.challenge(&token, age - LIFE - Duration::from_millis(1));
        let future = challenger.challenge(&token, age + Duration::from_millis(1));
        for challenge in [forged.as_str(), &foreign, &old, &future, "", "..", "a.b"] {
            let mut text = String::new();
            let signed = sign(&token, &mut text, challenge);
            assert_eq!(challenger.verify(&token, &signed, age).unwrap().0, Verdict::Stale, "{challenge}");
        }
    }
}
