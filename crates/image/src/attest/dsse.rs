//! The envelope of a signed statement: DSSE v1 (<https://github.com/secure-systems-lab/dsse>). What is signed is the
//! pre-authentication encoding of type and payload, so that neither can be taken for the other.

use super::key::{PublicKey, SigningKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The type of the payloads that kiln signs: in-toto statements.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A payload with the signatures over it, as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// The payload in base64.
    pub payload: String,
    /// By whom, with what.
    pub signatures: Vec<Signature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// [`PublicKey::id`] of the key: a hint, not signed.
    #[serde(default)]
    pub keyid: String,
    /// The signature in base64.
    pub sig: String,
}

/// The bytes that are signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// Signs a payload.
    pub fn sign(payload: &[u8], key: &SigningKey) -> Self {
        let signature = key.sign(&pae(PAYLOAD_TYPE, payload));
        Self {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature { keyid: key.public().id(), sig: STANDARD.encode(signature) }],
        }
    }

    /// The payload, verified by nobody; none if it is not base64.
    pub fn payload(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.payload).ok()
    }

    /// Whether one of the signatures is by `key`.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let Some(payload) = self.payload() else { return false };
        let message = pae(&self.payload_type, &payload);
        let signatures = self.signatures.iter().filter_map(|s| STANDARD.decode(&s.sig).ok());
        signatures.into_iter().any(|signature| key.verifies(&message, &signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_that_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
        // Lengths are of bytes, not of characters.
        assert_eq!(pae("é", "ü".as_bytes()), "DSSEv1 2 é 2 ü".as_bytes());
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    }

    #[test]
    fn every_change_of_an_envelope_breaks_it() {
        let key = SigningKey::generate().unwrap();
        let good = Envelope::sign(b"{\"a\":1}", &key);
        assert!(good.is_signed_by(&key.public()));
        assert_eq!(good.payload().unwrap(), b"{\"a\":1}");
        assert!(!good.is_signed_by(&SigningKey::generate().unwrap().public()), "a foreign key");
        let changed = |change: &dyn Fn(&mut Envelope)| {
            let mut envelope = good.clone();
            change(&mut envelope);
            envelope.is_signed_by(&key.public())
        };
        assert!(!changed(&|e| e.payload_type = "text/plain".into()));
        assert!(!changed(&|e| e.payload = STANDARD.encode(b"{\"a\":2}")));
        assert!(!changed(&|e| e.payload.insert(0, '!')));
        assert!(!changed(&|e| e.signatures.clear()));
        assert!(!changed(&|e| e.signatures[0].sig = STANDARD.encode([0; 64])));
        assert!(changed(&|e| e.signatures[0].keyid = "another".into()), "it is only a hint");
        let bytes = STANDARD.decode(&good.signatures[0].sig).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!changed(&|e| e.signatures[0].sig = STANDARD.encode(&flipped)), "bit {bit}");
        }
    }
}
