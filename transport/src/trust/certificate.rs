//! One certificate, read and judged for its place in the chain.
//!
//! Each place has exactly one shape that this mesh issues; whatever differs from it is refused, whether or not a
//! general-purpose verifier would let it pass.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_SIG_ED25519, OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use super::key::verify_raw;
use super::refusal::Refusal;

/// Largest certificate in bytes; those this mesh issues have about 400.
pub(crate) const CERTIFICATE_LEN_MAX: usize = 1536;

/// A certificate that parses completely, is X.509 version 3 and has an Ed25519 key and signature.
#[derive(Debug)]
pub(crate) struct Certificate<'a> {
    x509: X509Certificate<'a>,
    pub(crate) public_key: [u8; 32],
    pub(crate) not_before_unix: u64,
    pub(crate) not_after_unix: u64,
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, Refusal> {
        if der.len() > CERTIFICATE_LEN_MAX {
            return Err(Refusal::ChainShape);
        }
        let Ok((rest, x509)) = X509Certificate::from_der(der) else {
            return Err(Refusal::Malformed);
        };
        let key = x509.public_key();
        let plain = |algorithm: &x509_parser::x509::AlgorithmIdentifier<'_>| {
            algorithm.algorithm == OID_SIG_ED25519 && algorithm.parameters.is_none()
        };
        let well_formed = rest.is_empty()
            && is_wrapped_canonically(der, x509.tbs_certificate.as_ref())
            && x509.version() == X509Version::V3
            && plain(&key.algorithm)
            && plain(&x509.signature_algorithm)
            && plain(&x509.tbs_certificate.signature);
        let Ok(public_key) = <[u8; 32]>::try_from(key.subject_public_key.data.as_ref()) else {
            return Err(Refusal::Malformed);
        };
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
        let validity = x509.validity();
        let (Some(not_before_unix), Some(not_after_unix)) = (seconds(validity.not_before), seconds(validity.not_after))
        else {
            return Err(Refusal::Malformed);
        };
        if !well_formed {
            return Err(Refusal::Malformed);
        }
        Ok(Self { x509, public_key, not_before_unix, not_after_unix })
    }

    /// The subject's name as encoded.
    pub(crate) fn subject(&self) -> &[u8] {
        self.x509.subject().as_raw()
    }

    /// Checks that the issuer's name and key made this certificate.
    pub(crate) fn check_signature(&self, issuer_subject: &[u8], issuer_key: &[u8; 32]) -> Result<(), Refusal> {
        let names_chain = self.x509.issuer().as_raw() == issuer_subject;
        let signed = self.x509.tbs_certificate.as_ref();
        let unused_bits = self.x509.signature_value.unused_bits;
        let signature = self.x509.signature_value.data.as_ref();
        if names_chain && unused_bits == 0 && verify_raw(issuer_key, signed, signature) {
            Ok(())
        } else {
            Err(Refusal::Untrusted)
        }
    }

    /// Checks the time in seconds since 1970 against this certificate alone; both ends belong to its life.
    pub(crate) const fn check_time(&self, now_unix: u64) -> Result<(), Refusal> {
        if now_unix < self.not_before_unix {
            Err(Refusal::NotYetValid)
        } else if now_unix > self.not_after_unix {
            Err(Refusal::Expired)
        } else {
            Ok(())
        }
    }

    /// Checks that this is an issuing certificate with exactly `path_len` more issuers allowed below it.
    pub(crate) fn check_issuer(&self, path_len: u32) -> Result<(), Refusal> {
        let shape = self.shape()?;
        let Some((true, limit)) = shape.basic_constraints else {
            return Err(Refusal::NotAnIssuer);
        };
        if limit != Some(path_len) {
            return Err(Refusal::NotAnIssuer);
        }
        if shape.key_usage != Some(KEY_CERT_SIGN) || shape.extended_key_usage.is_some() {
            return Err(Refusal::Usage);
        }
        // A CA of a SPIFFE trust domain carries no path, and ours are told apart by their subjects alone.
        if shape.uri.is_some() { Err(Refusal::Name) } else { Ok(()) }
    }

    /// Checks that this is a leaf for both sides of TLS and gives its one URI.
    pub(crate) fn check_leaf(&self) -> Result<&'a str, Refusal> {
        let shape = self.shape()?;
        if !matches!(shape.basic_constraints, None | Some((false, None))) {
            return Err(Refusal::NotALeaf);
        }
        if shape.key_usage != Some(DIGITAL_SIGNATURE) || shape.extended_key_usage != Some(true) {
            return Err(Refusal::Usage);
        }
        shape.uri.ok_or(Refusal::Name)
    }

    /// The only common name of the subject.
    pub(crate) fn common_name(&self) -> Result<&str, Refusal> {
        self.only_attribute(&OID_X509_COMMON_NAME)
    }

    /// The only organization of the subject.
    pub(crate) fn organization(&self) -> Result<&str, Refusal> {
        self.only_attribute(&OID_X509_ORGANIZATION_NAME)
    }

    /// The only organizational unit of the subject.
    pub(crate) fn organizational_unit(&self) -> Result<&str, Refusal> {
        self.only_attribute(&OID_X509_ORGANIZATIONAL_UNIT)
    }

    fn only_attribute(&self, oid: &Oid<'_>) -> Result<&str, Refusal> {
        let mut found = self.x509.subject().iter_attributes().filter(|attribute| attribute.attr_type() == oid);
        let (Some(attribute), None) = (found.next(), found.next()) else {
            return Err(Refusal::Name);
        };
        attribute.as_str().ok().ok_or(Refusal::Name)
    }

    /// The extensions that decide; any other one is refused, as are two of a kind.
    fn shape(&self) -> Result<Shape<'a>, Refusal> {
        let mut shape = Shape::default();
        if self.x509.tbs_certificate.extensions_map().is_err() {
            return Err(Refusal::Malformed);
        }
        for extension in self.x509.iter_extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(found) => {
                    shape.basic_constraints = Some((found.ca, found.path_len_constraint));
                }
                ParsedExtension::KeyUsage(found) => shape.key_usage = Some(found.flags),
                ParsedExtension::ExtendedKeyUsage(found) => {
                    let more = found.any
                        || found.code_signing
                        || found.email_protection
                        || found.time_stamping
                        || found.ocsp_signing
                        || !found.other.is_empty();
                    shape.extended_key_usage = Some(found.server_auth && found.client_auth && !more);
                }
                ParsedExtension::SubjectAlternativeName(found) => {
                    let [GeneralName::URI(uri)] = found.general_names.as_slice() else {
                        return Err(Refusal::Name);
                    };
                    shape.uri = Some(uri);
                }
                ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                _ => return Err(Refusal::Malformed),
            }
        }
        Ok(shape)
    }
}

/// Whether the bytes around the signed part are the only right ones. The signature does not cover them, and a parser
/// that is generous there would let anybody write one certificate in several ways.
fn is_wrapped_canonically(der: &[u8], signed: &[u8]) -> bool {
    const SIGNATURE_LEN: usize = 64;
    // AlgorithmIdentifier of Ed25519, then the header of a bit string of 64 bytes.
    const BETWEEN: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];
    let content_len = signed.len() + BETWEEN.len() + SIGNATURE_LEN;
    // None of our certificates is so short or long that its length takes another form than two bytes.
    let Some(len) = u16::try_from(content_len).ok().filter(|len| *len > 255) else {
        return false;
    };
    let [high, low] = len.to_be_bytes();
    let wrapped = [&[0x30, 0x82, high, low], signed, &BETWEEN].concat();
    der.len() == wrapped.len() + SIGNATURE_LEN && der.starts_with(&wrapped)
}

#[derive(Debug, Default)]
struct Shape<'a> {
    /// Whether it may issue, and how many issuers may follow.
    basic_constraints: Option<(bool, Option<u32>)>,
    key_usage: Option<u16>,
    /// Whether it names exactly both sides of TLS.
    extended_key_usage: Option<bool>,
    uri: Option<&'a str>,
}

/// Bits as the parser gives them: the first of RFC 5280 (digital signature) is the lowest.
const DIGITAL_SIGNATURE: u16 = 1;
const KEY_CERT_SIGN: u16 = 1 << 5;
