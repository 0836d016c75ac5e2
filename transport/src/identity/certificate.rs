//! Making certificates, and reading the one field of them that we put in.
//!
//! Always holds: the authority's certificate is the same bytes for the same cluster key, wherever
//! it is made; every process has a random key of its own, and its name is sealed in the subject.
use super::{CLIENT_HOST, IdentityError, NODE_HOST, Role};
use crate::key::ClusterKey;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::sync::Arc;

/// Longest name of a node or client.
const NAME_BYTES_MAX: usize = 64;

/// Bytes of a sealed name: a random part, the length, and the padded name.
const SEALED_BYTES: usize = NONCE_BYTES + 1 + NAME_BYTES_MAX;
const NONCE_BYTES: usize = 16;

/// What precedes an Ed25519 seed in PKCS #8 (RFC 8410).
const PKCS8_ED25519_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A process's certificate with all that its TLS needs.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub name: String,
    /// DER.
    pub certificate: Arc<[u8]>,
    /// PKCS #8 DER.
    pub private_key: Arc<[u8]>,
    /// The authority's certificate, DER.
    pub authority: Arc<[u8]>,
    pub names: NameKey,
}

/// Makes a new key and a certificate for it, signed by the cluster's authority.
pub(crate) fn issue(key: &ClusterKey, name: &str, role: Role) -> Result<Leaf, IdentityError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(IdentityError(format!(
            "the name {name:?} must have 1 to {NAME_BYTES_MAX} bytes and no control characters"
        )));
    }
    let names = NameKey(key.derive("kitchensink 2026 names in certificates v1"));
    let authority_key = authority_key(key)?;
    let authority_params = authority_params();
    let authority = authority_params.self_signed(&authority_key)?;
    let leaf_key = KeyPair::generate_for(&PKCS_ED25519)?;
    let issuer = Issuer::from_params(&authority_params, &authority_key);
    let certificate = leaf_params(&names.seal(name), role)?.signed_by(&leaf_key, &issuer)?;
    Ok(Leaf {
        name: name.to_owned(),
        certificate: certificate.der().as_ref().into(),
        private_key: leaf_key.serialized_der().into(),
        authority: authority.der().as_ref().into(),
        names,
    })
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> Self {
        IdentityError(error.to_string())
    }
}

fn authority_key(key: &ClusterKey) -> Result<KeyPair, IdentityError> {
    let seed = key.derive("kitchensink 2026 certificate authority v1");
    let pkcs8: Vec<u8> = PKCS8_ED25519_PREFIX.into_iter().chain(seed).collect();
    let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(
        &pkcs8,
        &PKCS_ED25519,
    )?)
}

fn authority_params() -> CertificateParams {
    let mut params = base_params("KitchenSink");
    // Determinism: a serial number of our own, where rcgen would take one from the public key.
    params.serial_number = Some(SerialNumber::from(1));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf_params(common_name: &str, role: Role) -> Result<CertificateParams, IdentityError> {
    let mut params = base_params(common_name);
    let (host, usages) = match role {
        Role::Node => (
            NODE_HOST,
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        ),
        Role::Client => (CLIENT_HOST, vec![ExtendedKeyUsagePurpose::ClientAuth]),
    };
    params.subject_alt_names = CertificateParams::new(vec![host.to_owned()])?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Valid for as long as the cluster key is: a machine whose clock is wrong must still get in.
fn base_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

/// Seals names in certificates: a server shows its certificate to whoever asks.
#[derive(Clone, Copy)]
pub(crate) struct NameKey(pub [u8; 32]);

impl NameKey {
    /// Random each time, of one length for all names; text.
    pub(crate) fn seal(&self, name: &str) -> String {
        assert!(name.len() <= NAME_BYTES_MAX, "checked by issue");
        let mut sealed = [0; SEALED_BYTES];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut sealed[..NONCE_BYTES])
            .expect("the system's random generator works");
        sealed[NONCE_BYTES] = name.len() as u8;
        sealed[NONCE_BYTES + 1..][..name.len()].copy_from_slice(name.as_bytes());
        self.mask(&mut sealed);
        hex::encode(sealed)
    }

    /// The name, if it was sealed with this key. The certificate's signature vouches for it.
    pub(crate) fn open(&self, sealed: &str) -> Option<String> {
        let mut bytes = [0; SEALED_BYTES];
        hex::decode_to_slice(sealed, &mut bytes).ok()?;
        self.mask(&mut bytes);
        let length = usize::from(bytes[NONCE_BYTES]);
        let name = bytes[NONCE_BYTES + 1..].get(..length)?;
        String::from_utf8(name.to_vec()).ok()
    }

    fn mask(&self, sealed: &mut [u8; SEALED_BYTES]) {
        let (nonce, body) = sealed.split_at_mut(NONCE_BYTES);
        let mut stream = [0; SEALED_BYTES - NONCE_BYTES];
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(nonce);
        hasher.finalize_xof().fill(&mut stream);
        for (byte, mask) in body.iter_mut().zip(stream) {
            *byte ^= mask;
        }
    }
}

/// The subject's common name in a DER certificate.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const OBJECT_ID: u8 = 0x06;
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    let mut certificate = Der(certificate).take(SEQUENCE)?;
    let mut body = certificate.take(SEQUENCE)?;
    // version, serial number, algorithm, issuer, validity: then the subject.
    for tag in [0xa0, 0x02, SEQUENCE, SEQUENCE, SEQUENCE] {
        body.take(tag)?;
    }
    let mut subject = body.take(SEQUENCE)?;
    while !subject.0.is_empty() {
        let mut attribute = subject.take(SET)?.take(SEQUENCE)?;
        if attribute.take(OBJECT_ID)?.0 == COMMON_NAME {
            let (_, value) = attribute.next()?;
            return std::str::from_utf8(value.0).ok().map(str::to_owned);
        }
    }
    None
}

/// A run of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, Der<'a>)> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.len() > 3 {
                return None;
            }
            let length = digits.iter().fold(0, |sum, &d| sum << 8 | usize::from(d));
            (length, rest)
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Der(value)))
    }

    fn take(&mut self, tag: u8) -> Option<Der<'a>> {
        let (found, value) = self.next()?;
        (found == tag).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_authority_is_the_same_everywhere() {
        let key = ClusterKey::generate();
        let one = issue(&key, "one", Role::Node).unwrap();
        let two = issue(&key, "two", Role::Client).unwrap();
        assert_eq!(one.authority, two.authority);
        assert_ne!(one.private_key, two.private_key);
        let other = issue(&ClusterKey::generate(), "one", Role::Node).unwrap();
        assert_ne!(one.authority, other.authority);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = common_name(&bytes);
        }

        #[test]
        fn damaged_certificates_are_read_without_panic(at in 0usize..300, flip in 1u8..) {
            let leaf = issue(&ClusterKey([7; 32]), "node", Role::Node).unwrap();
            let mut bytes = leaf.certificate.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Some(name) = common_name(&bytes) {
                let _ = leaf.names.open(&name);
            }
            let _ = common_name(&bytes[..at]);
        }

        #[test]
        fn names_come_back(name in "[^\\p{Cc}]{1,16}") {
            let key = NameKey([3; 32]);
            prop_assert_eq!(key.open(&key.seal(&name)), Some(name));
        }
    }
}
