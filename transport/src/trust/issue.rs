//! The certificates this mesh issues, each in its one shape.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;

use super::error::TrustError;
use super::key::{PublicKey, SecretKey};
use super::name::Role;
use super::subject::Subject;
use crate::id::NodeId;

const DAY_S: u64 = 86_400;
/// Life of the root certificate.
pub(crate) const ROOT_LIFE_S: u64 = 10 * 365 * DAY_S;
/// Life of the admission certificate.
pub(crate) const ADMISSION_LIFE_S: u64 = 365 * DAY_S;
/// Life of a node certificate.
pub(crate) const NODE_LIFE_S: u64 = 90 * DAY_S;
/// How long before "now" issuing certificates begin, for peers whose clocks are behind.
pub(crate) const BACKDATE_S: u64 = 3_600;

/// How many issuing certificates may follow below each of ours.
pub(crate) const ROOT_PATH_LEN: u8 = 2;
pub(crate) const ADMISSION_PATH_LEN: u8 = 1;
pub(crate) const NODE_PATH_LEN: u8 = 0;

/// From when to when a certificate holds, in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) not_before_unix: u64,
    pub(crate) not_after_unix: u64,
}

impl Life {
    /// From an hour ago to `life_s` from now, but not beyond the end of the issuer.
    pub(crate) fn new(now_unix: u64, life_s: u64, issuer_not_after_unix: u64) -> Self {
        Self {
            not_before_unix: now_unix.saturating_sub(BACKDATE_S),
            not_after_unix: now_unix.saturating_add(life_s).min(issuer_not_after_unix),
        }
    }
}

/// An issuing certificate with its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signer<'a> {
    pub(crate) certificate: &'a [u8],
    pub(crate) key: &'a SecretKey,
}

/// A self-signed root named `MESH root`.
pub(crate) fn root(mesh: &str, key: &SecretKey, life: Life) -> Result<Vec<u8>, TrustError> {
    let params = issuer_params(&[(DnType::CommonName, &root_name(mesh))], ROOT_PATH_LEN, life);
    Ok(params.self_signed(key).map_err(TrustError::Issue)?.der().to_vec())
}

/// An admission certificate named `MESH admission`.
pub(crate) fn admission(mesh: &str, key: &[u8; 32], root: Signer<'_>, life: Life) -> Result<Vec<u8>, TrustError> {
    let params = issuer_params(&[(DnType::CommonName, &admission_name(mesh))], ADMISSION_PATH_LEN, life);
    sign(&params, &PublicKey(key), root)
}

/// A node certificate: common name the id, organization the node's name, unit its role.
pub(crate) fn node(
    name: &str,
    role: Role,
    key: &[u8; 32],
    admission: Signer<'_>,
    life: Life,
) -> Result<Vec<u8>, TrustError> {
    let id = NodeId::from_public_key(key).to_string();
    let subject = [
        (DnType::CommonName, id.as_str()),
        (DnType::OrganizationName, name),
        (DnType::OrganizationalUnitName, role.as_str()),
    ];
    let params = issuer_params(&subject, NODE_PATH_LEN, life);
    sign(&params, &PublicKey(key), admission)
}

/// A leaf for both sides of TLS with one SPIFFE URI.
pub(crate) fn leaf(
    mesh: &str,
    subject: &Subject,
    key: &SecretKey,
    node: Signer<'_>,
    life: Life,
) -> Result<Vec<u8>, TrustError> {
    sign(&leaf_params(&[&subject.uri(mesh)], life)?, key, node)
}

/// What a leaf says; several URIs only for proving that others refuse them.
pub(crate) fn leaf_params(uris: &[&str], life: Life) -> Result<CertificateParams, TrustError> {
    let mut params = params(&[(DnType::CommonName, "leaf")], life);
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into().map_err(TrustError::Issue)?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// What an issuing certificate says.
pub(crate) fn issuer_params(subject: &[(DnType, &str)], path_len: u8, life: Life) -> CertificateParams {
    let mut params = params(subject, life);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Signs what was asked for.
pub(crate) fn sign(
    params: &CertificateParams,
    key: &impl PublicKeyData,
    signer: Signer<'_>,
) -> Result<Vec<u8>, TrustError> {
    let certificate = CertificateDer::from(signer.certificate);
    let issuer = Issuer::from_ca_cert_der(&certificate, signer.key).map_err(TrustError::Issue)?;
    Ok(params.signed_by(key, &issuer).map_err(TrustError::Issue)?.der().to_vec())
}

/// The common name of a mesh's root.
pub(crate) fn root_name(mesh: &str) -> String {
    format!("{mesh} root")
}

/// The common name of a mesh's admission certificate.
pub(crate) fn admission_name(mesh: &str) -> String {
    format!("{mesh} admission")
}

fn params(subject: &[(DnType, &str)], life: Life) -> CertificateParams {
    // The last second that the encoding of certificates can hold is that of the year 9999.
    let moment = |unix: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix.min(253_402_300_799));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in subject {
        params.distinguished_name.push(kind.clone(), *value);
    }
    params.not_before = moment(life.not_before_unix);
    params.not_after = moment(life.not_after_unix);
    params.use_authority_key_identifier_extension = true;
    params
}
