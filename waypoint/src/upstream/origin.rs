use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_route::TlsRules;
use isobar_tls::HandshakeError;
use isobar_tls::https::ClientIdentity;
use isobar_tls::outwards::{self, OutwardClient, Within};
use isobar_types::{Reason, Str};

use crate::credentials::Credentials;
use crate::stream::AnyStream;
use crate::upstream::DialFailure;

/// Files are looked at again after that.
const LOOK: Duration = Duration::from_secs(10);
/// For a handshake, where no rule says less.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest file that is read.
const LARGEST: u64 = 4 << 20;
/// Rules remembered before those nobody uses are dropped.
const MOST: usize = 1024;

/// TLS that a rule asks for towards a service.
#[derive(Debug, Clone)]
pub struct Tls {
    /// How.
    pub rules: Arc<TlsRules>,
    /// The service's host name: asked for where the rules name nothing else.
    pub host: Str,
}

/// TLS towards one service, ready to begin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Origin {
    client: OutwardClient,
    server_name: Str,
    generation: u64,
}

/// What was made of rules, for one worker.
pub struct Origins {
    credentials: Credentials,
    made: RefCell<HashMap<Arc<TlsRules>, Rc<Made>>>,
    generation: Cell<u64>,
}

struct Made {
    client: OutwardClient,
    files: Files,
    generation: u64,
    looked: Cell<Instant>,
    /// Of the credentials, when they were looked at.
    version: Cell<u64>,
}

/// Contents of the files or credentials that a rule names.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    /// Those of the system where the rule names none; `None`: no certificate is looked at.
    roots: Option<String>,
    identity: Option<(String, String)>,
}

fn failure(detail: String) -> DialFailure {
    DialFailure {
        reason: Reason::UpstreamTls,
        detail,
    }
}

impl Origins {
    /// Nothing made yet.
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            made: RefCell::default(),
            generation: Cell::default(),
        }
    }

    /// TLS as the rules ask for it, made of their files as they are now or were a moment ago. Files
    /// that cannot be read or used any more leave what was made of them before; credentials that are
    /// taken away do not.
    ///
    /// # Errors
    /// When it cannot be begun as it is asked for.
    pub async fn of(&self, tls: &Tls) -> Result<Origin, DialFailure> {
        let rules = &tls.rules;
        if let Some(why) = &rules.refuse {
            return Err(failure(format!("nothing is sent to {}: {why}", tls.host)));
        }
        let server_name = rules.sni.as_ref().unwrap_or(&tls.host);
        if server_name.contains('*') {
            let text = format!("{server_name} is no server name: tls.sni has to name one");
            return Err(failure(text));
        }
        let made = self.made(rules).await?;
        Ok(Origin {
            client: made.client.clone(),
            server_name: server_name.clone(),
            generation: made.generation,
        })
    }

    async fn made(&self, rules: &Arc<TlsRules>) -> Result<Rc<Made>, DialFailure> {
        let version = self.credentials.version();
        let before = self.made.borrow().get(rules).cloned();
        if let Some(made) = before
            .as_ref()
            .filter(|made| made.looked.get().elapsed() < LOOK && made.version.get() == version)
        {
            return Ok(Rc::clone(made));
        }
        let read = Files::read(rules, &self.credentials).await;
        let made = read.and_then(|files| {
            let same = before.as_ref().filter(|made| made.files == files);
            match same {
                Some(made) => Ok(Rc::clone(made)),
                None => self.make(rules, files),
            }
        });
        let made = match (made, before) {
            (Ok(made), _) => made,
            (Err(why), Some(before)) if rules.credential.is_none() && rules.authority.is_none() => {
                tracing::warn!("what was read before goes on being used: {why}");
                before
            }
            (Err(why), _) => return Err(failure(why)),
        };
        made.looked.set(Instant::now());
        made.version.set(version);
        let mut all = self.made.borrow_mut();
        if all.len() > MOST {
            all.retain(|rules, _| Arc::strong_count(rules) > 1);
        }
        all.insert(Arc::clone(rules), Rc::clone(&made));
        Ok(made)
    }

    fn make(&self, rules: &TlsRules, files: Files) -> Result<Rc<Made>, String> {
        let identity = files.identity.as_ref();
        let identity = identity.map(|(chain, key)| ClientIdentity { chain, key });
        let client = match &files.roots {
            Some(roots) => outwards::client_config(roots, &rules.names, identity),
            None => outwards::unverified(identity),
        };
        self.generation.set(self.generation.get() + 1);
        Ok(Rc::new(Made {
            client: client.map_err(|e| e.to_string())?,
            files,
            generation: self.generation.get(),
            looked: Cell::new(Instant::now()),
            version: Cell::default(),
        }))
    }
}

impl Files {
    async fn read(rules: &TlsRules, credentials: &Credentials) -> Result<Self, String> {
        let gone = |name: &str| format!("there is no usable credential {name}");
        let roots = match (&rules.authority, &rules.roots) {
            _ if rules.unverified => None,
            (Some(name), _) => Some(credentials.authority(name).ok_or_else(|| gone(name))?),
            (None, Some(path)) => Some(file(path).await?),
            (None, None) => {
                let read = tokio::task::spawn_blocking(isobar_tls::system_roots).await;
                let read = read.map_err(|e| e.to_string())?;
                Some(read.map_err(|e| e.to_string())?)
            }
        };
        let identity = match (&rules.credential, &rules.identity) {
            (Some(name), _) => Some(credentials.identity(name).ok_or_else(|| gone(name))?),
            (None, Some((chain, key))) => Some((file(chain).await?, file(key).await?)),
            (None, None) => None,
        };
        Ok(Self { roots, identity })
    }
}

async fn file(path: &str) -> Result<String, String> {
    let wrong = |why: String| format!("{path}: {why}");
    let about = tokio::fs::metadata(path).await;
    let about = about.map_err(|e| wrong(e.to_string()))?;
    if !about.is_file() || about.len() > LARGEST {
        return Err(wrong("not a file of PEM blocks".to_owned()));
    }
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|e| wrong(e.to_string()))
}

impl Origin {
    /// Tells connections apart that must not be taken for each other.
    pub(super) fn mark(&self) -> (Str, u64) {
        (self.server_name.clone(), self.generation)
    }

    /// Begins TLS on a stream.
    ///
    /// # Errors
    /// When the other end is not who it should be, or does not do its part in time.
    pub async fn begin(&self, stream: AnyStream, within: Within) -> Result<AnyStream, DialFailure> {
        let name = &self.server_name;
        let shaken = self.client.connect(stream, name, within);
        match tokio::time::timeout(HANDSHAKE, shaken).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(DialFailure {
                reason: match error {
                    HandshakeError::Revoked => Reason::CertificateRevoked,
                    _ => Reason::UpstreamTls,
                },
                detail: format!("TLS with {name}: {}", crate::upstream::chain(&error)),
            }),
            Err(_) => Err(failure(format!(
                "TLS with {name}: no answer within {HANDSHAKE:?}"
            ))),
        }
    }
}
