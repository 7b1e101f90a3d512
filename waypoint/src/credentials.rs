//! What a gateway shows to callers from outside, and what rules show to servers outside: certificates
//! with their keys, by name. They stand
//! beside the tables, so that no dump and no log of those can hold a key.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::{isobar::v1 as proto, type_url};
use isobar_route::ListenerTls;
use isobar_tls::WorkloadCertificate;
use isobar_tls::edge::{Clients, EdgeCertificate, EdgeServer, server_config};
use isobar_types::{Identity, Str};
use isobar_xds::{CertSource, Rejected, ResourceHandler, decode};
use tokio::sync::watch;

/// The newest credentials. Cheap to clone; readers never wait.
#[derive(Clone, Default)]
pub struct Credentials {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    held: ArcSwap<Held>,
    version: watch::Sender<Version>,
    mesh: OnceLock<Arc<dyn CertSource>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

#[derive(Clone, Default)]
struct Held {
    version: Version,
    by_name: HashMap<Str, Arc<Credential>>,
}

struct Credential {
    shown: Option<EdgeCertificate>,
    /// The same as PEM: chain and key.
    pair: Option<(String, String)>,
    /// PEM; empty where there is none.
    authority: String,
}

/// Counts changes: the address of a set would come again with one that is allocated later.
pub(crate) type Version = u64;

impl Credentials {
    /// Changes whenever a credential does.
    pub(crate) fn version(&self) -> Version {
        self.shared.held.load().version
    }

    /// Tells of changes, once they are in place.
    pub(crate) fn versions(&self) -> watch::Receiver<Version> {
        self.shared.version.subscribe()
    }

    /// Tells where certificates of the mesh come from; the first that is told stays.
    pub fn tell_mesh(&self, source: Arc<dyn CertSource>) {
        self.shared.mesh.get_or_init(|| source);
    }

    /// The certificate of the mesh for this identity, waited for if need be.
    pub(crate) async fn of_mesh(&self, own: &Identity) -> Result<Arc<WorkloadCertificate>, String> {
        let source = self.shared.mesh.get();
        let source = source.ok_or("there are no certificates of the mesh")?;
        source.fetch(own).await.map_err(|error| error.to_string())
    }

    /// Whether there is a certificate that a listener could show.
    pub(crate) fn any_for(&self, tls: &ListenerTls) -> bool {
        if tls.mesh {
            // It comes with being of the mesh, and lasts until it is replaced.
            return true;
        }
        let held = self.shared.held.load();
        let mut named = tls.credentials.iter();
        named.any(|name| {
            held.by_name
                .get(name)
                .is_some_and(|one| one.shown.is_some())
        })
    }

    /// How TLS of a listener ends now.
    ///
    /// # Errors
    /// Names what is missing.
    pub(crate) fn server(&self, tls: &ListenerTls) -> Result<EdgeServer, String> {
        let held = self.shared.held.load();
        let all = &held.by_name;
        let named = tls.credentials.iter();
        let shown = named.filter_map(|name| all.get(name)?.shown.clone());
        let shown: Vec<_> = shown.collect();
        if shown.is_empty() {
            let names = tls.credentials.join(", ");
            return Err(format!("there is no certificate to show: {names}"));
        }
        let signer = tls.clients.as_ref().map(|(name, required)| {
            let credential = all.get(name).filter(|c| !c.authority.is_empty());
            let credential =
                credential.ok_or_else(|| format!("{name} has no authority of callers"))?;
            Ok::<_, String>((&credential.authority, *required))
        });
        let names: Vec<&str> = tls.client_names.iter().map(|name| &**name).collect();
        let clients = match &signer {
            None => None,
            Some(Err(why)) => return Err(why.clone()),
            Some(Ok((authority, required))) => Some(Clients {
                authority,
                names: &names,
                required: *required,
            }),
        };
        server_config(shown, clients, (tls.tls13, tls.tls12)).map_err(|error| error.to_string())
    }

    /// The certificate and the key to show to servers, as PEM.
    pub(crate) fn identity(&self, name: &str) -> Option<(String, String)> {
        self.shared.held.load().by_name.get(name)?.pair.clone()
    }

    /// Whoever signs the certificates of servers, as PEM.
    pub(crate) fn authority(&self, name: &str) -> Option<String> {
        let held = self.shared.held.load();
        let authority = &held.by_name.get(name)?.authority;
        (!authority.is_empty()).then(|| authority.clone())
    }

    /// Takes credentials from discovery.
    #[must_use]
    pub fn handler(&self) -> Box<dyn ResourceHandler> {
        Box::new(Handler(self.clone()))
    }

    /// Adds or replaces one.
    ///
    /// # Errors
    /// What cannot be read; what was there stays.
    pub fn upsert(&self, from: &proto::Credential) -> Result<(), String> {
        let shown = if from.chain.is_empty() && from.key.is_empty() {
            None
        } else {
            let read = EdgeCertificate::from_pem(&from.chain, &from.key);
            Some(read.map_err(|error| error.to_string())?)
        };
        let pair = shown
            .is_some()
            .then(|| (from.chain.clone(), from.key.clone()));
        let credential = Credential {
            shown,
            pair,
            authority: from.authority.clone(),
        };
        let mut next = Held::clone(&self.shared.held.load());
        let name = format!("{}/{}", from.namespace, from.name);
        next.by_name.insert(name.into(), Arc::new(credential));
        self.put(next);
        Ok(())
    }

    fn remove(&self, name: &str) {
        let mut next = Held::clone(&self.shared.held.load());
        if next.by_name.remove(name).is_some() {
            self.put(next);
        }
    }

    fn put(&self, mut next: Held) {
        next.version += 1;
        let version = next.version;
        self.shared.held.store(Arc::new(next));
        self.shared.version.send_replace(version);
    }
}

struct Handler(Credentials);

impl ResourceHandler for Handler {
    fn type_url(&self) -> &'static str {
        type_url::CREDENTIAL
    }

    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected> {
        for name in removed {
            self.0.remove(name);
        }
        let mut rejected = Vec::new();
        for resource in updates {
            let taken = decode::<proto::Credential>(resource).and_then(|message| {
                if resource.name != format!("{}/{}", message.namespace, message.name) {
                    return Err("the content is another's".to_owned());
                }
                self.0.upsert(&message)
            });
            if let Err(reason) = taken {
                let name = resource.name.clone();
                tracing::warn!(name, "a credential is not usable: {reason}");
                rejected.push(Rejected { name, reason });
            }
        }
        rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_version_comes_again() {
        let credentials = Credentials::default();
        let of = |authority: usize| proto::Credential {
            namespace: "ns".into(),
            name: "page".into(),
            authority: authority.to_string(),
            ..proto::Credential::default()
        };
        let mut seen = std::collections::BTreeSet::from([credentials.version()]);
        for turn in 0..100 {
            credentials.upsert(&of(turn)).unwrap();
            assert!(seen.insert(credentials.version()));
        }
        credentials.remove("ns/page");
        assert!(seen.insert(credentials.version()));
    }
}
