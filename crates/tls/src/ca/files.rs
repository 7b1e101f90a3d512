use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use boring::x509::{X509, X509Ref};

use super::{Authority, AuthorityError, issue};
use crate::{PrivateKey, pem};

const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-cert.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";
/// The same in a secret of type kubernetes.io/tls; the certificate's file holds its chain.
const TLS_KEY: &str = "tls.key";
const TLS_CERTIFICATE: &str = "tls.crt";
const TLS_ROOT: &str = "ca.crt";
/// Most certificates between a leaf and a root that are looked at.
const DEPTH: usize = 8;

impl Authority {
    /// The root kept in `dir` (`ca-key.pem` of mode 0600, `root-cert.pem`); made if there is none.
    ///
    /// # Errors
    /// When the files cannot be read or written, do not belong together, or have expired.
    pub fn load_or_create(dir: &Path) -> Result<Self, AuthorityError> {
        let (key_path, root_path) = (dir.join(KEY), dir.join(ROOT));
        if !root_path.exists() {
            // Without the certificate nobody has seen the key's signatures: start over.
            fs::create_dir_all(dir).map_err(|source| file(dir, source))?;
            let authority = Self::generate("Isobar")?;
            write(&key_path, authority.key.to_pem()?.as_bytes(), 0o600)?;
            write(&root_path, authority.roots.as_bytes(), 0o644)?;
            return Ok(authority);
        }
        let key = read_key(&key_path)?;
        let roots = read(&root_path)?;
        let certificate = first_certificate(&root_path, &roots)?;
        check_signer(&root_path, &certificate, &key)?;
        Ok(Self {
            key,
            certificate,
            intermediates: Vec::new(),
            roots,
        })
    }

    /// Renews the root kept in `dir` as [`Self::renewed_roots`] says, if it is old; true if it was.
    ///
    /// # Errors
    /// As [`Self::load_or_create`].
    pub fn renew_if_old(dir: &Path, now: SystemTime) -> Result<bool, AuthorityError> {
        let authority = Self::load_or_create(dir)?;
        if !authority.is_old(now) {
            return Ok(false);
        }
        let roots = authority.renewed_roots(now)?;
        write(&dir.join(ROOT), roots.as_bytes(), 0o644)?;
        Ok(true)
    }

    /// An intermediate of the user's own hierarchy, in files named as Istio's `cacerts` secret:
    /// `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem` (optional), `root-cert.pem`; or, without a
    /// `ca-key.pem`, named as in a TLS secret: `tls.crt`, `tls.key`, `ca.crt`.
    ///
    /// # Errors
    /// When a file is missing, or the chain does not lead from `ca-cert.pem` to a root.
    pub fn from_intermediate(dir: &Path) -> Result<Self, AuthorityError> {
        let is_tls = !dir.join(KEY).exists() && dir.join(TLS_KEY).exists();
        let [key, certificate, chain, root] = match is_tls {
            true => [TLS_KEY, TLS_CERTIFICATE, TLS_CERTIFICATE, TLS_ROOT],
            false => [KEY, CERTIFICATE, CHAIN, ROOT],
        };
        let (root_path, chain_path) = (dir.join(root), dir.join(chain));
        let key = read_key(&dir.join(key))?;
        let path = dir.join(certificate);
        let certificate = first_certificate(&path, &read(&path)?)?;
        check_signer(&path, &certificate, &key)?;
        let roots = read(&root_path)?;
        let root_list = stack(&root_path, &roots)?;
        let given = if chain_path.exists() {
            stack(&chain_path, &read(&chain_path)?)?
        } else {
            Vec::new()
        };
        let intermediates = climb(&certificate, &given, &root_list)
            .map_err(|detail| unusable(&chain_path, detail))?;
        let intermediates = intermediates
            .iter()
            .map(|c| issue::pem(c))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            key,
            certificate,
            intermediates,
            roots,
        })
    }
}

/// The certificates from `signer` up to just below a root, each signed by the next.
fn climb(signer: &X509, given: &[X509], roots: &[X509]) -> Result<Vec<X509>, String> {
    let is_root = |c: &X509| roots.iter().any(|root| same(root, c));
    let mut path = Vec::new();
    let mut current = signer.clone();
    while !is_root(&current) {
        if path.len() == DEPTH {
            return Err(format!("no root within {DEPTH} certificates"));
        }
        let up = if roots.iter().any(|root| signed_by(&current, root)) {
            None
        } else {
            let up = given
                .iter()
                .find(|c| !same(c, &current) && signed_by(&current, c));
            Some(
                up.cloned()
                    .ok_or("a certificate's issuer is neither here nor a root")?,
            )
        };
        path.push(current);
        match up {
            Some(up) => current = up,
            None => break,
        }
    }
    Ok(path)
}

fn same(a: &X509Ref, b: &X509Ref) -> bool {
    matches!((a.to_der(), b.to_der()), (Ok(a), Ok(b)) if a == b)
}

fn signed_by(child: &X509Ref, parent: &X509Ref) -> bool {
    parent.issued(child).is_ok()
        && parent
            .public_key()
            .is_ok_and(|key| child.verify(&key).unwrap_or(false))
}

fn check_signer(path: &Path, certificate: &X509, key: &PrivateKey) -> Result<(), AuthorityError> {
    let unreadable = |_| unusable(path, "the certificate cannot be read".to_owned());
    let public = certificate.public_key().map_err(unreadable)?;
    if !public.public_eq(key.pkey()) {
        return Err(unusable(path, format!("it does not belong to {KEY}")));
    }
    let der = certificate.to_der().map_err(unreadable)?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&der).map_err(|e| unusable(path, e.to_string()))?;
    if !parsed.is_ca() {
        return Err(unusable(
            path,
            "it is not a certificate authority's".to_owned(),
        ));
    }
    let info = crate::CertificateInfo::read(&der.as_slice().into())
        .map_err(|detail| unusable(path, detail))?;
    if info.not_after <= SystemTime::now() {
        return Err(unusable(path, "it has expired".to_owned()));
    }
    Ok(())
}

fn first_certificate(path: &Path, text: &str) -> Result<X509, AuthorityError> {
    let mut all = stack(path, text)?;
    Ok(all.swap_remove(0))
}

/// At least one certificate.
fn stack(path: &Path, text: &str) -> Result<Vec<X509>, AuthorityError> {
    let ders = pem::certificates(text).map_err(|detail| unusable(path, detail))?;
    ders.iter()
        .map(|der| X509::from_der(der).map_err(|e| unusable(path, e.to_string())))
        .collect()
}

fn read_key(path: &Path) -> Result<PrivateKey, AuthorityError> {
    PrivateKey::from_pem(&read(path)?).map_err(|e| unusable(path, e.to_string()))
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| file(path, source))
}

/// Whole or not at all, and never readable by others on the way.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let part = path.with_extension("pem.new");
    let put = || -> io::Result<()> {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&part)?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&part, path)
    };
    put().map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> AuthorityError {
    AuthorityError::File {
        path: path.to_owned(),
        source,
    }
}

fn unusable(path: &Path, detail: String) -> AuthorityError {
    AuthorityError::Unusable {
        path: path.to_owned(),
        detail,
    }
}
