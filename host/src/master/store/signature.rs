//! Who has signed a plugin, by minisign: `NAME.so.minisig` beside `NAME.so`, over the very bytes that are in the store. Only
//! prehashed signatures, the kind that minisign makes: those of the old kind need the whole file in memory.
//!
//! That a signature is old, or was made for a plugin of another name, it does not say.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use minisign_verify::{Error, PublicKey, Signature};

use super::Refusal;
use crate::sys::files;

/// Of a signature's file, at most.
const LONGEST: u64 = 16 << 10;

const EXTENSION: &str = "minisig";

/// Where the signature of `plugin` lies.
pub fn beside(plugin: &Path) -> PathBuf {
    let mut name = OsString::from(plugin);
    name.push(".");
    name.push(EXTENSION);
    name.into()
}

/// Whether a plugin's signature could lie there.
pub fn is_beside_a_plugin(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION) && super::is_plugin_file(&path.with_extension(""))
}

fn name_of(plugin: &Path) -> String {
    beside(plugin).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn how_to_sign(plugin: &Path) -> String {
    format!("sign it by a key of store.signers: minisign -Sm {}", plugin.display())
}

fn unreadable(error: io::Error) -> Refusal {
    Refusal::new(format!("its signature cannot be read: {error}"))
}

/// Whether one of `signers` has signed what `copy`, the copy of `plugin`, holds.
pub fn verify(copy: &Path, plugin: &Path, signers: &[String]) -> Result<(), Refusal> {
    let mut text = String::new();
    match files::open_regular(&beside(plugin)) {
        Ok(file) => file.take(LONGEST).read_to_string(&mut text).map_err(unreadable)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = format!("it is not signed: there is no {}", name_of(plugin));
            return Err(Refusal::new(why).hint(how_to_sign(plugin)));
        }
        Err(error) => return Err(unreadable(error)),
    };
    verify_text(&text, copy, plugin, signers)
}

/// As [`verify`], for a signature with this text.
pub(super) fn verify_text(text: &str, copy: &Path, plugin: &Path, signers: &[String]) -> Result<(), Refusal> {
    let (name, sign) = (name_of(plugin), how_to_sign(plugin));
    let Ok(signature) = Signature::decode(text) else {
        return Err(Refusal::new(format!("{name} is no signature of minisign")).hint(sign));
    };
    let mut known = false;
    // The configuration was validated: each is a key.
    for key in signers.iter().filter_map(|signer| PublicKey::from_base64(signer).ok()) {
        let mut verifier = match key.verify_stream(&signature) {
            Ok(verifier) => verifier,
            Err(Error::UnsupportedLegacyMode) => {
                let why = format!("{name} is a signature of the old kind, not prehashed");
                return Err(Refusal::new(why).hint(sign));
            }
            Err(_) => continue,
        };
        known = true;
        let mut copy = File::open(copy).map_err(unreadable)?;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match copy.read(&mut buffer).map_err(unreadable)? {
                0 => break,
                read => verifier.update(&buffer[..read]),
            }
        }
        if verifier.finalize().is_ok() {
            return Ok(());
        }
    }
    let why = match known {
        true => format!("its signature does not fit: it or {name} was changed since"),
        false => "it is signed by none of store.signers".into(),
    };
    Err(Refusal::new(why).hint(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of minisign's own documentation: a key, and signatures of "test" by it.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const OTHER: &str = "RWSTRANGENQp7HEDa4Cd2PzZ4DZFCbZCbSyLlLRXcVNvV1yWSZRuXzWF";
    const PREHASHED: &str = "untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1556193335\tfile:test
y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==";
    const OLD_KIND: &str = "untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==";

    fn verdict(content: &str, signature: Option<&str>, signers: &[&str]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("libx.so");
        std::fs::write(&plugin, content).unwrap();
        if let Some(text) = signature {
            std::fs::write(beside(&plugin), text).unwrap();
        }
        let signers: Vec<String> = signers.iter().map(ToString::to_string).collect();
        verify(&plugin, &plugin, &signers).map_err(|refusal| {
            assert!(refusal.hint.unwrap().contains("minisign -Sm"));
            refusal.why
        })
    }

    #[test]
    fn what_one_of_the_signers_has_signed_is_taken() {
        assert_eq!(verdict("test", Some(PREHASHED), &[KEY]), Ok(()));
        assert_eq!(verdict("test", Some(PREHASHED), &[OTHER, KEY]), Ok(()));
    }

    #[test]
    fn each_way_of_not_being_signed_has_its_word() {
        fn of(content: &str, signature: Option<&str>, signer: &str) -> String {
            verdict(content, signature, &[signer]).unwrap_err()
        }
        assert!(of("test", None, KEY).contains("there is no libx.so.minisig"));
        assert!(of("test", Some(PREHASHED), OTHER).contains("none of store.signers"));
        assert!(of("Test", Some(PREHASHED), KEY).contains("does not fit"));
        assert!(of("test", Some(&PREHASHED.replace("1556193335", "1556193336")), KEY).contains("does not fit"));
        assert!(of("test", Some(OLD_KIND), KEY).contains("old kind"));
        for broken in ["", "a signature\n", &PREHASHED[..120], &PREHASHED.replace("RUQf", "####")] {
            assert!(of("test", Some(broken), KEY).contains("no signature of minisign"), "{broken}");
        }
    }
}
