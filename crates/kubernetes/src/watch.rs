use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use isobar_objects::{Kind, ObjectRef, Recalled, ServedObject, Stranger};
use isobar_runtime::Backoff;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The longest of a watch of one object: there may be many, and what is refused stays so for long.
const PAUSE_OF_ONE: Duration = Duration::from_secs(10);
/// How often a kind that the server does not have is looked for.
const MISSING: Duration = Duration::from_secs(2);
/// Objects in one answer to a list. While an answer is read a pod takes some tens of KB.
const PAGE: u32 = 200;

/// Objects of a list that are told at once.
const PART: usize = 100;

/// Slices that the controller makes from selectors say nothing new, and change with every pod.
const BY_HAND: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";

/// What a watch has to tell.
pub(crate) enum Notice {
    /// A list of the kind begins; what came of one before counts no more.
    Listing(Kind),
    /// A part of all objects of the kind.
    Part(Kind, Vec<ServedObject>),
    /// The last of all objects of the kind.
    Listed(Kind, Vec<ServedObject>),
    /// An object as it is now.
    Present(Box<ServedObject>),
    /// An object that is gone.
    Gone(ObjectRef),
    /// What a watch of one object found when it began.
    Found(ObjectRef, Option<Box<ServedObject>>),
    /// The server does not let us have the object of such a watch.
    Refused(ObjectRef),
    /// All objects of a kind that has no effect.
    Strangers(Stranger, Vec<ObjectRef>),
    /// One of them.
    Stranger(Stranger, ObjectRef),
    /// The server does not say whether there are any.
    StrangersUnknown(Stranger),
    /// Last valid versions that are kept; none where the server does not tell.
    Recalled(Recalled),
}

/// Watches one kind for ever.
pub(crate) struct Watch {
    pub(crate) kind: Kind,
    pub(crate) client: Client,
    /// Only objects with these fields.
    pub(crate) fields: Option<String>,
    /// Only this object; nothing is told of others of its kind.
    pub(crate) only: Option<ObjectRef>,
    /// Forget what only matters to whoever runs pods.
    pub(crate) slim: bool,
    pub(crate) notices: mpsc::Sender<Notice>,
}

/// Whether and how the server has a kind.
enum Served {
    As(ApiResource),
    NotAtAll,
}

impl Watch {
    /// Returns when nobody listens any more.
    pub(crate) async fn run(self) {
        let longest = self.only.as_ref().map_or(PAUSE.1, |_| PAUSE_OF_ONE);
        let mut backoff = Backoff::new(PAUSE.0, longest);
        let mut outage = Outage::new(self.kind, self.only.clone());
        let mut is_missing = false;
        while !self.notices.is_closed() {
            match self.served().await {
                Ok(Served::As(resource)) => {
                    if std::mem::take(&mut is_missing) {
                        tracing::info!(kind = %self.kind, "the API server has the kind now");
                    }
                    self.follow(&resource, &mut backoff, &mut outage).await;
                }
                Ok(Served::NotAtAll) => {
                    if !std::mem::replace(&mut is_missing, true) {
                        tracing::warn!(
                            kind = %self.kind,
                            definition = definition(self.kind),
                            "the API server does not have the kind; it is left out until it does",
                        );
                        let nothing = Notice::Listed(self.kind, Vec::new());
                        if self.tell(Notice::Listing(self.kind)).await || self.tell(nothing).await {
                            return;
                        }
                    }
                    tokio::time::sleep(MISSING).await;
                }
                Err(error) => {
                    outage.noted(&error);
                    tokio::time::sleep(backoff.step(rand::random())).await;
                }
            }
        }
    }

    /// Which version of the kind the server has. For a custom kind its definition decides: only
    /// that it is not stored says that there can be no object of the kind.
    async fn served(&self) -> Result<Served, kube::Error> {
        let versions = self.kind.versions();
        if !self.kind.is_custom() {
            return Ok(Served::As(self.resource(versions[0])));
        }
        let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let resource = ApiResource::from_gvk(&gvk);
        let definitions: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let Some(found) = definitions.get_opt(&definition(self.kind)).await? else {
            return Ok(Served::NotAtAll);
        };
        let listed = found.data["spec"]["versions"].as_array();
        let is_served = |version: &str| {
            listed.into_iter().flatten().any(|one| {
                one["name"].as_str() == Some(version) && one["served"].as_bool() == Some(true)
            })
        };
        let version = versions.iter().find(|version| is_served(version));
        Ok(version.map_or(Served::NotAtAll, |version| {
            Served::As(self.resource(version))
        }))
    }

    fn resource(&self, version: &str) -> ApiResource {
        let gvk = GroupVersionKind::gvk(self.kind.group(), version, self.kind.as_str());
        ApiResource::from_gvk_with_plural(&gvk, self.kind.plural())
    }

    /// What is asked for, and how.
    fn asked(&self, resource: &ApiResource) -> (Api<DynamicObject>, watcher::Config) {
        let client = self.client.clone();
        let mut config = watcher::Config::default().page_size(PAGE);
        let objects = match &self.only {
            None => Api::all_with(client, resource),
            Some(only) => {
                config = config.fields(&format!("metadata.name={}", only.name));
                Api::namespaced_with(client, &only.namespace, resource)
            }
        };
        if let Some(fields) = &self.fields {
            config = config.fields(fields);
        }
        if self.kind == Kind::EndpointSlice {
            config = config.labels(BY_HAND);
        }
        (objects, config)
    }

    /// Follows the kind until the server says that it has none of that name.
    async fn follow(&self, resource: &ApiResource, backoff: &mut Backoff, outage: &mut Outage) {
        let (objects, config) = self.asked(resource);
        let mut events = pin!(watcher(objects, config));
        // All objects take force together: a list that breaks off leaves the last one.
        let mut listing = Vec::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.notices.closed() => return,
            };
            let notice = match event {
                None => return,
                // Says only that a list is about to be asked for.
                Some(Ok(Event::Init)) => {
                    listing.clear();
                    // Another watch may be reading all of the kind.
                    if self.only.is_none() && self.tell(Notice::Listing(self.kind)).await {
                        return;
                    }
                    continue;
                }
                Some(Ok(Event::InitApply(object))) => {
                    listing.push(self.read(resource, object));
                    if self.only.is_none() && listing.len() >= PART {
                        let part = std::mem::take(&mut listing);
                        if self.tell(Notice::Part(self.kind, part)).await {
                            return;
                        }
                    }
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    let mut all = std::mem::take(&mut listing);
                    match &self.only {
                        None => Notice::Listed(self.kind, all),
                        Some(only) => Notice::Found(only.clone(), all.pop().map(Box::new)),
                    }
                }
                Some(Ok(Event::Apply(object))) => {
                    Notice::Present(Box::new(self.read(resource, object)))
                }
                Some(Ok(Event::Delete(object))) => {
                    let namespace = object.namespace().unwrap_or_default();
                    let reference = ObjectRef::new(self.kind, &namespace, &object.name_any());
                    Notice::Gone(reference)
                }
                Some(Err(error)) => {
                    outage.noted(&error);
                    if let Some(only) = &self.only
                        && code(&error) == Some(403)
                        && self.tell(Notice::Refused(only.clone())).await
                    {
                        return;
                    }
                    tokio::time::sleep(backoff.step(rand::random())).await;
                    if code(&error) == Some(404) {
                        return;
                    }
                    continue;
                }
            };
            backoff.reset();
            outage.over();
            if self.tell(notice).await {
                return;
            }
        }
    }

    fn read(&self, resource: &ApiResource, mut object: DynamicObject) -> ServedObject {
        object.metadata.managed_fields = None;
        let mut value = match object.data {
            Value::Object(_) => object.data,
            _ => json!({}),
        };
        value["apiVersion"] = json!(resource.api_version);
        value["kind"] = json!(resource.kind);
        // A head that was just read can be written.
        value["metadata"] = serde_json::to_value(object.metadata).unwrap_or_default();
        let served = ServedObject::read(self.kind, &value);
        if self.slim { served.slim() } else { served }
    }

    /// True if nobody listens.
    async fn tell(&self, notice: Notice) -> bool {
        self.notices.send(notice).await.is_err()
    }
}

fn definition(kind: Kind) -> String {
    format!("{}.{}", kind.plural(), kind.group())
}

/// The status that the server answered with.
pub(crate) fn code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => match error {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        },
        WatchError(status) => Some(status.code),
        watcher::Error::NoResourceVersion => None,
    }
}

/// Tells once that the server cannot be reached, and once that it can again.
struct Outage {
    what: String,
    is_on: bool,
}

impl Outage {
    fn new(kind: Kind, only: Option<ObjectRef>) -> Self {
        let what = only.map_or_else(|| kind.to_string(), |only| only.to_string());
        Self { what, is_on: false }
    }

    fn noted(&mut self, error: &dyn fmt::Display) {
        if std::mem::replace(&mut self.is_on, true) {
            tracing::debug!(what = self.what, %error, "watching failed");
        } else {
            tracing::warn!(
                what = self.what, %error,
                "watching failed; what was read stays in force, trying again",
            );
        }
    }

    fn over(&mut self) {
        if std::mem::take(&mut self.is_on) {
            tracing::info!(what = self.what, "watching again");
        }
    }
}
