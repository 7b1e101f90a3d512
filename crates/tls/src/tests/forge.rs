//! Certificates that no authority of ours would sign.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use boring::asn1::{Asn1Integer, Asn1Time};
use boring::bn::BigNum;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::rsa::Rsa;
use boring::sign::Signer as Signature;
use boring::x509::extension::{BasicConstraints, ExtendedKeyUsage, KeyUsage};
use boring::x509::{X509, X509Builder, X509Extension, X509NameBuilder};

use crate::PrivateKey;

pub(super) const HOUR: i64 = 3600;

/// Somebody who signs: certificate and key.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) certificate: X509,
    pub(super) key: PKey<Private>,
}

/// One name of a leaf: its tag and its bytes, whatever they are.
pub(super) enum San<'a> {
    Uri(&'a [u8]),
    Dns(&'a [u8]),
}

/// What is asked for.
pub(super) struct Forged<'a> {
    pub(super) names: Vec<San<'a>>,
    pub(super) common_name: Option<&'a str>,
    /// Seconds from now.
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) ca: bool,
    pub(super) client_auth: bool,
    pub(super) server_auth: bool,
    pub(super) signs: bool,
    /// URI constraint of a CA, `permitted;URI:…` in BoringSSL's words.
    pub(super) constraints: Option<&'a str>,
    pub(super) key: PKey<Private>,
    pub(super) digest: MessageDigest,
}

fn p256() -> PKey<Private> {
    PrivateKey::generate().unwrap().pkey().clone()
}

pub(super) fn rsa(bits: u32) -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap()
}

impl<'a> Forged<'a> {
    /// A good leaf for these names.
    pub(super) fn leaf(names: Vec<San<'a>>) -> Self {
        Self {
            names,
            common_name: None,
            from: -HOUR,
            to: HOUR,
            ca: false,
            client_auth: true,
            server_auth: true,
            signs: true,
            constraints: None,
            key: p256(),
            digest: MessageDigest::sha256(),
        }
    }

    /// A good intermediate.
    pub(super) fn intermediate(name: &'a str) -> Self {
        Self {
            common_name: Some(name),
            ca: true,
            client_auth: false,
            server_auth: false,
            ..Self::leaf(Vec::new())
        }
    }

    /// Signed by `issuer`, or by itself.
    pub(super) fn sign(&self, issuer: Option<&Signer>) -> Signer {
        let mut subject = X509NameBuilder::new().unwrap();
        if let Some(name) = self.common_name {
            subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
        }
        let subject = subject.build();
        let mut made = X509Builder::new().unwrap();
        made.set_version(2).unwrap();
        made.set_serial_number(&serial()).unwrap();
        made.set_subject_name(&subject).unwrap();
        match issuer {
            Some(issuer) => made
                .set_issuer_name(issuer.certificate.subject_name())
                .unwrap(),
            None => made.set_issuer_name(&subject).unwrap(),
        }
        made.set_pubkey(&self.key).unwrap();
        made.set_not_before(&at(self.from)).unwrap();
        made.set_not_after(&at(self.to)).unwrap();
        self.extend(&mut made);
        let key = issuer.map_or(&self.key, |issuer| &issuer.key);
        made.sign(key, self.digest).unwrap();
        Signer {
            certificate: made.build(),
            key: self.key.clone(),
        }
    }

    fn extend(&self, made: &mut X509Builder) {
        let mut basic = BasicConstraints::new();
        basic.critical();
        let mut usage = KeyUsage::new();
        usage.critical();
        if self.ca {
            basic.ca();
            usage.key_cert_sign().crl_sign();
        }
        if self.signs {
            usage.digital_signature();
        } else {
            usage.key_encipherment();
        }
        made.append_extension(&basic.build().unwrap()).unwrap();
        made.append_extension(&usage.build().unwrap()).unwrap();
        if self.client_auth || self.server_auth {
            let mut extended = ExtendedKeyUsage::new();
            if self.client_auth {
                extended.client_auth();
            }
            if self.server_auth {
                extended.server_auth();
            }
            made.append_extension(&extended.build().unwrap()).unwrap();
        }
        if !self.names.is_empty() {
            let names = extension("subjectAltName", &format!("critical,DER:{}", self.san()));
            made.append_extension(&names).unwrap();
        }
        if let Some(constraints) = self.constraints {
            let text = format!("critical,{constraints}");
            made.append_extension(&extension("nameConstraints", &text))
                .unwrap();
        }
    }

    /// The names as DER, in hexadecimal.
    fn san(&self) -> String {
        let mut body = Vec::new();
        for name in &self.names {
            let (tag, bytes) = match name {
                San::Uri(bytes) => (0x86, bytes),
                San::Dns(bytes) => (0x82, bytes),
            };
            body.extend(der(tag, bytes));
        }
        let mut text = String::new();
        for byte in der(0x30, &body) {
            write!(text, "{byte:02x}").unwrap();
        }
        text
    }
}

impl Signer {
    /// A revocation list of these certificates in DER, in force until `life` seconds from now (RFC
    /// 5280 §5.1).
    pub(super) fn list(&self, revoked: &[&Self], life: i64) -> Vec<u8> {
        let time = |offset: i64| {
            let text = at(offset).to_string();
            // `Nov 21 06:47:10 2026 GMT` as `261121064710Z`.
            let parts: Vec<_> = text.split_whitespace().collect();
            let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
            let month = months.find(parts[0]).unwrap() / 3 + 1;
            let clock = parts[2].replace(':', "");
            let day: u8 = parts[1].parse().unwrap();
            der(
                0x17,
                format!("{}{month:02}{day:02}{clock}Z", &parts[3][2..]).as_bytes(),
            )
        };
        // ecdsa-with-SHA256
        let algorithm = der(0x30, &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
        let entries: Vec<u8> = revoked
            .iter()
            .flat_map(|one| {
                let serial = one.certificate.serial_number().to_bn().unwrap().to_vec();
                let serial = match serial.first() {
                    Some(first) if *first < 0x80 => serial,
                    _ => [vec![0], serial].concat(),
                };
                der(0x30, &[der(2, &serial), time(-2 * HOUR)].concat())
            })
            .collect();
        // cRLNumber 7
        let number = der(0x30, &[6, 3, 0x55, 0x1d, 0x14, 4, 3, 2, 1, 7]);
        let body = [
            der(2, &[1]),
            algorithm.clone(),
            self.certificate.subject_name().to_der().unwrap(),
            time(-2 * HOUR),
            time(life),
            der(0x30, &entries),
            der(0xa0, &der(0x30, &number)),
        ];
        let body = der(0x30, &body.concat());
        let mut signer = Signature::new(MessageDigest::sha256(), &self.key).unwrap();
        let proof = signer.sign_oneshot_to_vec(&body).unwrap();
        let proof = der(3, &[vec![0], proof].concat());
        der(0x30, &[body, algorithm, proof].concat())
    }
}

fn extension(name: &str, value: &str) -> X509Extension {
    X509Extension::new(None, None, name, value).unwrap()
}

fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = body.len();
    if length < 128 {
        bytes.push(length as u8);
    } else if length < 256 {
        bytes.extend([0x81, length as u8]);
    } else {
        bytes.extend([0x82, (length >> 8) as u8, length as u8]);
    }
    bytes.extend(body);
    bytes
}

fn serial() -> Asn1Integer {
    let mut number = BigNum::new().unwrap();
    number.rand(100, boring::bn::MsbOption::ONE, false).unwrap();
    number.to_asn1_integer().unwrap()
}

fn at(offset: i64) -> Asn1Time {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Asn1Time::from_unix(i64::try_from(now.as_secs()).unwrap() + offset).unwrap()
}
