//! The mesh on file: what is in force, with the versions the control plane gave it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_proto::type_url::{ADDRESS, AUTHORIZATION, OUTBOUND_POLICY};
use isobar_state::{Snapshot, convert, wire};
use isobar_types::Str;
use prost::Message;
use prost_types::Any;

use super::SavedError;
use super::file::{self, Kind, Sealing};
use crate::status::SyncStatus;
use crate::store::Store;

const FILE: &str = "mesh";
const KIND: Kind = Kind {
    magic: *b"ISOBARME",
    format: 1,
    limit: 256 << 20,
};
/// What is older is not used: no certificate lives longer, so nothing could be served with it.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Changes come in bursts; a moment after the first one all of them are written together.
const QUIET: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });
/// Writing takes at most one part in so many of the time.
const SHARE: u32 = 20;

/// Begins the file.
#[derive(Clone, PartialEq, Message)]
struct Header {
    /// Which control plane said so.
    #[prost(string, tag = "1")]
    origin: String,
    /// Seconds since 1970.
    #[prost(uint64, tag = "2")]
    written: u64,
    /// What wrote it.
    #[prost(string, tag = "3")]
    program: String,
}

/// Where the mesh is kept. One file, of the whole mesh.
#[derive(Debug)]
pub struct SavedMesh {
    path: PathBuf,
    origin: String,
}

/// Name to version of what is in force of one type, as the server gave it. Shared with the writer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Arc<Mutex<HashMap<Str, Str>>>);

impl Held {
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<Str, Str>> {
        // Each change leaves the map whole, so a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Types that are kept.
pub(crate) const KEPT: [&str; 3] = [AUTHORIZATION, OUTBOUND_POLICY, ADDRESS];

/// What is in force of each kept type that is subscribed to.
pub(crate) type HeldByType = Vec<(&'static str, Held)>;

/// What was on file, by type.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) resources: BTreeMap<String, Vec<Resource>>,
    pub(crate) age: Duration,
}

impl SavedMesh {
    /// Keeps the mesh in `folder`, which is made if missing. `origin` names the mesh: what was kept
    /// of another one is not used.
    ///
    /// # Errors
    /// When the folder cannot be made, or others may write to it.
    pub fn open(folder: &Path, origin: impl Into<String>) -> Result<Self, SavedError> {
        file::private_folder(folder)?;
        Ok(Self {
            path: folder.join(FILE),
            origin: origin.into(),
        })
    }

    /// What was kept; `None` if there is nothing. Reads the whole file.
    pub(crate) fn load(&self) -> Result<Option<Restored>, SavedError> {
        let Some(bytes) = file::read(&self.path, KIND)? else {
            return Ok(None);
        };
        self.restore(&bytes).map(Some)
    }

    /// What these bytes of a file tell, which a seal goes around or not: resources by type. For tests of what
    /// is read, without a file.
    ///
    /// # Errors
    /// As for a file that cannot be used.
    pub fn read(origin: &str, bytes: &[u8]) -> Result<BTreeMap<String, Vec<Resource>>, SavedError> {
        let path = PathBuf::from(FILE);
        let sealed = file::unseal(&path, bytes.to_vec(), KIND);
        let content = sealed.unwrap_or_else(|_| bytes.to_vec());
        let origin = origin.to_owned();
        let restored = Self { path, origin }.restore(&content)?;
        Ok(restored.resources)
    }

    fn restore(&self, bytes: &[u8]) -> Result<Restored, SavedError> {
        let malformed = |e: prost::DecodeError| SavedError::damaged(&self.path, e.to_string());
        let mut rest = bytes;
        let header = Header::decode_length_delimited(&mut rest).map_err(malformed)?;
        if header.origin != self.origin {
            let detail = format!("is of another mesh: {}", header.origin);
            return Err(SavedError::damaged(&self.path, detail));
        }
        let written = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(header.written));
        let written = written
            .ok_or_else(|| SavedError::damaged(&self.path, "is of a time that cannot be"))?;
        let age = written.elapsed().unwrap_or_default();
        if age > OLDEST {
            let detail = format!("is {} hours old", age.as_secs() / 3600);
            return Err(SavedError::damaged(&self.path, detail));
        }
        let mut restored = Restored {
            age,
            ..Restored::default()
        };
        while !rest.is_empty() {
            let mut resource = Resource::decode_length_delimited(&mut rest).map_err(malformed)?;
            if header.program != program() {
                // Another version may have left out what this one understands: have it sent again.
                resource.version.clear();
            }
            let kind = resource.resource.as_ref().map(|any| any.type_url.clone());
            match kind {
                Some(kind) if KEPT.contains(&&*kind) => {
                    restored.resources.entry(kind).or_default().push(resource);
                }
                _ => return Err(SavedError::damaged(&self.path, "holds an unknown type")),
            }
        }
        Ok(restored)
    }

    /// Writes what is in force. `held` must have been read before the snapshot: an old version
    /// beside new content is sent again, a new one beside old content never is.
    pub(crate) fn save(
        &self,
        snapshot: &Snapshot,
        held: &BTreeMap<&str, HashMap<Str, Str>>,
    ) -> Result<(), SavedError> {
        let mut sealing = Sealing::start(&self.path, KIND)?;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        sealing.message(&Header {
            origin: self.origin.clone(),
            written: since_1970.unwrap_or_default().as_secs(),
            program: program().to_owned(),
        })?;
        let version = |kind: &str, name: &str| held.get(kind)?.get(name).cloned();
        for policy in snapshot.authorizations() {
            let name = policy.key.to_string();
            // What stands in for an unreadable policy is not held: it is the server's to repeat.
            if let Some(version) = version(AUTHORIZATION, &name) {
                let message = wire::authorization(policy);
                sealing.message(&resource(AUTHORIZATION, name, &version, &message))?;
            }
        }
        for message in wire::outbound_policies(snapshot) {
            let name = convert::outbound_policy_name(&message);
            let version = version(OUTBOUND_POLICY, &name).unwrap_or_default();
            sealing.message(&resource(OUTBOUND_POLICY, name, &version, &message))?;
        }
        for workload in snapshot.workloads() {
            let name = workload.uid.to_string();
            let message = wire::address_of_workload(workload);
            let version = version(ADDRESS, &name).unwrap_or_default();
            sealing.message(&resource(ADDRESS, name, &version, &message))?;
        }
        for service in snapshot.services() {
            let name = service.key.to_string();
            let message = wire::address_of_service(service);
            let version = version(ADDRESS, &name).unwrap_or_default();
            sealing.message(&resource(ADDRESS, name, &version, &message))?;
        }
        sealing.finish()
    }
}

fn program() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn resource(type_url: &str, name: String, version: &str, message: &impl Message) -> Resource {
    Resource {
        name,
        version: version.to_owned(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

/// Writes the mesh a while after each change.
#[derive(Debug)]
pub(crate) struct Saver {
    pub(crate) saved: Arc<SavedMesh>,
    pub(crate) store: Store,
    pub(crate) held: HeldByType,
}

impl Saver {
    /// Never ends. Nothing is written before the control plane has told everything once: half a
    /// mesh must not replace a whole one.
    pub(crate) async fn run(self, status: SyncStatus) {
        status.answered().await;
        let mut versions = self.store.versions();
        // The state as of now is already a change.
        versions.mark_changed();
        let this = Arc::new(self);
        let mut took = Duration::ZERO;
        while versions.changed().await.is_ok() {
            tokio::time::sleep(QUIET.max(took * SHARE)).await;
            versions.borrow_and_update();
            let start = Instant::now();
            let writer = Arc::clone(&this);
            let written = tokio::task::spawn_blocking(move || writer.write()).await;
            took = start.elapsed();
            match written {
                Ok(Ok(())) => tracing::debug!(?took, "mesh saved"),
                Ok(Err(error)) => tracing::warn!("the mesh is not saved: {error}"),
                Err(error) => tracing::error!("saving the mesh failed: {error}"),
            }
        }
    }

    fn write(&self) -> Result<(), SavedError> {
        // Versions first; see `save`.
        let held = self.held.iter();
        let held = held.map(|(kind, held)| (*kind, held.lock().clone()));
        let held: BTreeMap<_, _> = held.collect();
        let snapshot = self.store.load();
        let result = self.saved.save(&snapshot, &held);
        if matches!(result, Err(SavedError::TooLarge { .. })) {
            // What is there gets older and older: better none.
            let _ = std::fs::remove_file(&self.saved.path);
        }
        self.store.retire(snapshot);
        result
    }
}
