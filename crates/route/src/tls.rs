use isobar_proto::isobar::v1 as proto;
use isobar_types::Str;

use crate::virtual_service::FieldError;

/// Whether a waypoint begins TLS towards endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origination {
    /// No; the mesh's own is not touched by that.
    Off,
    /// Yes.
    On(std::sync::Arc<TlsRules>),
}

/// How TLS towards endpoints is begun.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsRules {
    /// Server name to ask for; the service's host name where there is none.
    pub sni: Option<Str>,
    /// Names of which the certificate must have one; the server name where there are none.
    pub names: Vec<Str>,
    /// File with the roots; those of the system where there is none.
    pub roots: Option<Str>,
    /// Files with the chain and the key to show.
    pub identity: Option<(Str, Str)>,
    /// It cannot be done as it is written: why nothing is sent.
    pub refuse: Option<Str>,
    /// Credential with the chain and the key to show, in place of files.
    pub credential: Option<Str>,
    /// Credential with the roots, in place of a file.
    pub authority: Option<Str>,
    /// The server's certificate is not looked at.
    pub unverified: bool,
}

impl Origination {
    pub(crate) fn compile(from: &proto::EndpointTls) -> Result<Self, FieldError> {
        if from.off {
            return Ok(Self::Off);
        }
        let text = |text: &str| (!text.is_empty()).then(|| Str::from(text));
        let identity = match (text(&from.client_certificate), text(&from.private_key)) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => {
                let problem = "a certificate needs its key, and a key its certificate";
                return Err(FieldError::new("tls", problem));
            }
        };
        Ok(Self::On(std::sync::Arc::new(TlsRules {
            sni: text(&from.sni),
            names: from
                .subject_alt_names
                .iter()
                .map(|n| n.as_str().into())
                .collect(),
            roots: text(&from.ca_certificates),
            identity,
            refuse: text(&from.refuse),
            credential: text(&from.credential),
            authority: text(&from.authority),
            unverified: from.unverified,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_comes_with_its_key() {
        let made = |chain: &str, key: &str| {
            let compiled = Origination::compile(&proto::EndpointTls {
                client_certificate: chain.into(),
                private_key: key.into(),
                ..Default::default()
            });
            compiled.map(|made| match made {
                Origination::On(rules) => rules.identity.clone(),
                Origination::Off => panic!("it is off"),
            })
        };
        let both = Some(("/chain".into(), "/key".into()));
        assert_eq!(made("/chain", "/key").unwrap(), both);
        assert_eq!(made("", "").unwrap(), None);
        assert!(made("/chain", "").is_err() && made("", "/key").is_err());
    }
}
