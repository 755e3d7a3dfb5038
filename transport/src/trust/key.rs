//! Ed25519 keys: made, kept in memory, used for certificates and for signed records.

use std::fmt;

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::hkdf;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rcgen::{PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::Zeroizing;

use super::error::TrustError;

/// An Ed25519 key pair with the PKCS#8 bytes it is stored as. `Debug` shows the public half only.
pub(crate) struct SecretKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl SecretKey {
    /// A fresh key from the system's random source.
    pub(crate) fn generate() -> Result<Self, TrustError> {
        let failed = TrustError::Crypto("make a key");
        let Ok(document) = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()) else {
            return Err(failed);
        };
        Self::from_pkcs8(document.as_ref()).ok_or(failed)
    }

    /// Reads a key; `None` when the bytes are no Ed25519 key in PKCS#8.
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { pkcs8: Zeroizing::new(pkcs8.to_vec()), pair, public })
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// A signature over the bytes as they are; only for layouts that carry their own context.
    pub(crate) fn sign_raw(&self, bytes: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        for (to, from) in signature.iter_mut().zip(self.pair.sign(bytes).as_ref()) {
            *to = *from;
        }
        signature
    }

    /// A signature that holds in this mesh and for this purpose only, see [`verify_signature`].
    pub(crate) fn sign(&self, mesh: &str, context: &str, bytes: &[u8]) -> [u8; 64] {
        self.sign_raw(&to_be_signed(mesh, context, bytes))
    }

    /// 64 secret bytes for one purpose, the same whenever this key is asked (HKDF-SHA-256, RFC 5869).
    pub(crate) fn derive(&self, purpose: &str) -> Result<[u8; 64], TrustError> {
        let failed = || TrustError::Crypto("derive a key");
        let seed = self.pair.seed().ok().ok_or_else(failed)?;
        let seed = seed.as_be_bytes().ok().ok_or_else(failed)?;
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"marram node key").extract(seed.as_ref());
        let mut out = [0; 64];
        let info = [purpose.as_bytes()];
        let okm = prk.expand(&info, OutLen(out.len())).ok().ok_or_else(failed)?;
        okm.fill(&mut out).ok().ok_or_else(failed)?;
        Ok(out)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for SecretKey {
    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.sign_raw(bytes).to_vec())
    }
}

/// The public half of a key that somebody else holds, for certificates issued to them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublicKey<'a>(pub(crate) &'a [u8; 32]);

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// Whether the holder of `public_key` signed `bytes` for this `context` in this `mesh`.
///
/// What is signed is `"marram\0"`, the mesh name, `\0`, the context, `\0`, the bytes: a signature for one purpose or
/// mesh says nothing in another. Neither mesh names nor contexts contain `\0`. Costs one Ed25519 verification.
pub fn verify_signature(mesh: &str, public_key: &[u8; 32], context: &str, bytes: &[u8], signature: &[u8; 64]) -> bool {
    verify_raw(public_key, &to_be_signed(mesh, context, bytes), signature)
}

/// Plain Ed25519 over the bytes as they are.
pub(crate) fn verify_raw(public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(bytes, signature).is_ok()
}

fn to_be_signed(mesh: &str, context: &str, bytes: &[u8]) -> Vec<u8> {
    debug_assert!(!mesh.contains('\0') && !context.contains('\0'), "separators stay unambiguous");
    [b"marram", mesh.as_bytes(), context.as_bytes(), bytes].join(&0)
}

struct OutLen(usize);

impl hkdf::KeyType for OutLen {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_holds_for_its_mesh_context_and_bytes_only() {
        let key = SecretKey::generate().unwrap();
        let signature = key.sign("garden", "op", b"bytes");
        let cases = [
            ("garden", "op", &b"bytes"[..], true),
            ("garden", "op", b"byteS", false),
            ("garden", "record", b"bytes", false),
            ("orchard", "op", b"bytes", false),
        ];
        for (mesh, context, bytes, expected) in cases {
            assert_eq!(
                verify_signature(mesh, key.public(), context, bytes, &signature),
                expected,
                "{mesh} {context} {bytes:?}"
            );
        }
        let other = SecretKey::generate().unwrap();
        assert!(!verify_signature("garden", other.public(), "op", b"bytes", &signature));
    }

    #[test]
    fn layout_of_what_is_signed_stays() {
        assert_eq!(to_be_signed("m", "c", b"x\0y"), b"marram\0m\0c\0x\0y");
    }

    #[test]
    fn derived_keys_are_stable_per_purpose() {
        let key = SecretKey::generate().unwrap();
        let again = SecretKey::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(key.derive("reset").unwrap(), again.derive("reset").unwrap());
        assert_ne!(key.derive("reset").unwrap(), key.derive("token").unwrap());
        assert_ne!(key.derive("reset").unwrap(), SecretKey::generate().unwrap().derive("reset").unwrap());
    }

    #[test]
    fn debug_output_hides_the_private_half() {
        let key = SecretKey::generate().unwrap();
        let seed = format!("{:?}", &key.pkcs8()[16..48]);
        assert!(!format!("{key:?}").contains(seed.trim_matches(['[', ']'])));
    }
}
