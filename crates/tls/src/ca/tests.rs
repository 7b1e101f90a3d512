use std::os::unix::fs::PermissionsExt as _;

use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

#[test]
fn a_leaf_says_what_peers_need() {
    let authority = Authority::generate("test").unwrap();
    let (csr, _) = csr::generate(&cart()).unwrap();
    let parts = authority.sign(&csr, &cart(), DAY).unwrap();
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[1], authority.roots());
    let der = crate::pem::certificates(&parts[0]).unwrap().remove(0);
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    assert!(leaf.raw_serial().len() <= 16 && leaf.raw_serial()[0] < 0x80);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(
        san.value.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]
    );
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    let age = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(age, 24 * 3600 + 120);
    assert!(leaf.iter_extensions().any(|e| matches!(
        e.parsed_extension(),
        ParsedExtension::AuthorityKeyIdentifier(_)
    )));
}

#[test]
fn the_request_carries_one_name_and_proves_its_key() {
    let (csr, key) = csr::generate(&cart()).unwrap();
    let request = boring::x509::X509Req::from_pem(csr.as_bytes()).unwrap();
    assert_eq!(request.subject_name().entries().count(), 0);
    assert!(request.verify(key.pkey()).unwrap());
    assert_eq!(request.extensions().unwrap().len(), 1);

    let authority = Authority::generate("test").unwrap();
    let body: String = csr.lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
    let last = der.len() - 1;
    der[last] ^= 1;
    let forged = boring::x509::X509Req::from_der(&der)
        .map(|r| String::from_utf8(r.to_pem().unwrap()).unwrap())
        .unwrap_or_default();
    for bad in [
        forged.as_str(),
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        assert!(matches!(
            authority.sign(bad, &cart(), DAY),
            Err(AuthorityError::Request(_))
        ));
    }
    let strange = Identity::new("cluster.local", "shop,URI:x", "cart");
    assert!(matches!(
        authority.sign(&csr, &strange, DAY),
        Err(AuthorityError::Name(_))
    ));
}

#[test]
fn the_root_is_kept_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state");
    let first = Authority::load_or_create(&dir).unwrap();
    let again = Authority::load_or_create(&dir).unwrap();
    assert_eq!(first.roots(), again.roots());
    let mode = std::fs::metadata(dir.join("ca-key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    again.issue_workload(&cart(), DAY).unwrap();

    let other = PrivateKey::generate().unwrap();
    std::fs::write(dir.join("ca-key.pem"), other.to_pem().unwrap()).unwrap();
    assert!(matches!(
        Authority::load_or_create(&dir),
        Err(AuthorityError::Unusable { .. })
    ));
}

#[test]
fn an_intermediate_signs_with_its_chain() {
    let root = Authority::generate("root").unwrap();
    let key = PrivateKey::generate().unwrap();
    let intermediate = issue::test_intermediate(&root.certificate, &root.key, &key).unwrap();
    let intermediate = issue::pem(&intermediate).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("ca-cert.pem", &intermediate);
    put("ca-key.pem", &key.to_pem().unwrap());
    put("cert-chain.pem", &format!("{intermediate}{}", root.roots()));
    put("root-cert.pem", root.roots());
    let authority = Authority::from_intermediate(dir.path()).unwrap();
    let (csr, leaf_key) = csr::generate(&cart()).unwrap();
    let parts = authority.sign(&csr, &cart(), DAY).unwrap();
    assert_eq!(parts.len(), 3, "leaf, intermediate, root");
    assert_eq!(parts[1], intermediate);
    WorkloadCertificate::new(&cart(), &parts, &leaf_key).unwrap();

    put(
        "root-cert.pem",
        Authority::generate("other").unwrap().roots(),
    );
    put("cert-chain.pem", &intermediate);
    assert!(matches!(
        Authority::from_intermediate(dir.path()),
        Err(AuthorityError::Unusable { .. })
    ));
}

#[test]
fn an_answer_for_another_identity_or_key_is_refused() {
    let authority = Authority::generate("test").unwrap();
    let (csr, key) = csr::generate(&cart()).unwrap();
    let parts = authority.sign(&csr, &cart(), DAY).unwrap();
    let other = Identity::new("cluster.local", "shop", "front");
    assert!(matches!(
        WorkloadCertificate::new(&other, &parts, &key),
        Err(CertificateError::WrongIdentity { .. })
    ));
    let stranger = PrivateKey::generate().unwrap();
    assert_eq!(
        WorkloadCertificate::new(&cart(), &parts, &stranger).unwrap_err(),
        CertificateError::WrongKey
    );
    assert_eq!(
        WorkloadCertificate::new(&cart(), &parts[..1], &key).unwrap_err(),
        CertificateError::TooFewParts(1)
    );
    let whole = WorkloadCertificate::new(&cart(), &parts, &key).unwrap();
    assert!(whole.is_valid_at(SystemTime::now()));
    assert!(!format!("{whole:?}{key:?}").contains("BEGIN"));
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let authority = Authority::generate("test").unwrap();
    let certificate = authority.issue_workload(&cart(), ROOT_LIFE * 2).unwrap();
    assert!(certificate.not_after() <= SystemTime::now() + ROOT_LIFE);
}

#[test]
fn an_old_root_is_renewed_and_both_verify_what_was_signed_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let before = Authority::load_or_create(dir.path()).unwrap();
    let now = SystemTime::now();
    assert!(!Authority::renew_if_old(dir.path(), now).unwrap());
    let late = now + DAY * 365 * 9;
    assert!(Authority::renew_if_old(dir.path(), late).unwrap());
    let after = Authority::load_or_create(dir.path()).unwrap();
    let roots = crate::pem::certificates(after.roots()).unwrap();
    assert_eq!(roots.len(), 2);
    assert!(!after.is_old(late), "the new one counts");

    let signed = |authority: &Authority| {
        let (csr, _) = csr::generate(&cart()).unwrap();
        let parts = authority.sign_at(&csr, &cart(), DAY, late).unwrap();
        X509::from_pem(parts[0].as_bytes()).unwrap()
    };
    for leaf in [signed(&before), signed(&after)] {
        for root in &roots {
            let root = X509::from_der(root).unwrap();
            assert!(leaf.verify(&root.public_key().unwrap()).unwrap());
            assert!(root.issued(&leaf).is_ok());
        }
    }
    // The first ends; the second one stays alone.
    let later = now + DAY * 365 * 18;
    assert!(Authority::renew_if_old(dir.path(), later).unwrap());
    let last = Authority::load_or_create(dir.path()).unwrap();
    assert_eq!(crate::pem::certificates(last.roots()).unwrap().len(), 2);
}
