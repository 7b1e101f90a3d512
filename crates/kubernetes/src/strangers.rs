//! Kinds of the mesh's APIs that the mesh does nothing with: which objects of them there are, so that it
//! can be told. Nothing else is read of them.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use isobar_objects::{ObjectRef, Stranger};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use tokio::sync::mpsc;

use crate::watch::Notice;

/// How often a kind that the server does not have is looked for, and one that it does not tell of.
const AGAIN: Duration = Duration::from_secs(30);
/// For the first answer: nobody waits longer for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Objects in one answer to a list.
const PAGE: u32 = 500;

/// Follows the heads of one such kind for ever.
pub(crate) struct Strangers {
    pub(crate) kind: Stranger,
    pub(crate) client: Client,
    pub(crate) notices: mpsc::Sender<Notice>,
}

type Heads = Api<PartialObjectMeta<DynamicObject>>;

impl Strangers {
    /// Returns when nobody listens any more.
    pub(crate) async fn run(self) {
        let mut is_first = true;
        let mut is_told = false;
        while !self.notices.is_closed() {
            let served = tokio::time::timeout(PATIENCE, self.served()).await;
            let outcome = match served {
                Ok(Ok(Some(resource))) => self.follow(&resource, &mut is_first).await,
                Ok(Ok(None)) => {
                    self.tell(Notice::Strangers(self.kind, Vec::new())).await;
                    Ok(())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            if let Err(error) = outcome {
                if !std::mem::replace(&mut is_told, true) {
                    let kind = self.kind.kind;
                    tracing::warn!(
                        kind,
                        error,
                        "objects of a kind that is not used are not told of"
                    );
                }
                if std::mem::take(&mut is_first) {
                    self.tell(Notice::StrangersUnknown(self.kind)).await;
                }
            }
            is_first = false;
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.notices.closed() => return,
            }
        }
    }

    /// How the server has the kind, if it has it: its definition says so.
    async fn served(&self) -> Result<Option<ApiResource>, kube::Error> {
        let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let resource = ApiResource::from_gvk(&gvk);
        let definitions: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let Stranger {
            group,
            kind,
            plural,
        } = self.kind;
        let Some(found) = definitions.get_opt(&format!("{plural}.{group}")).await? else {
            return Ok(None);
        };
        let versions = found.data["spec"]["versions"].as_array();
        let mut versions = versions.into_iter().flatten();
        let version = versions.find(|one| one["served"].as_bool() == Some(true));
        let version = version.and_then(|one| one["name"].as_str());
        Ok(version.map(|version| {
            let gvk = GroupVersionKind::gvk(group, version, kind);
            ApiResource::from_gvk_with_plural(&gvk, plural)
        }))
    }

    /// Follows it until the server does not tell any more.
    async fn follow(&self, resource: &ApiResource, is_first: &mut bool) -> Result<(), String> {
        let heads: Heads = Api::all_with(self.client.clone(), resource);
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = pin!(watcher(heads, config));
        let mut listing = Vec::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.notices.closed() => return Ok(()),
                () = tokio::time::sleep(PATIENCE), if *is_first => {
                    return Err(format!("no answer within {PATIENCE:?}"));
                }
            };
            let notice = match event {
                None => return Ok(()),
                Some(Ok(Event::Init)) => {
                    listing.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(head))) => {
                    listing.push(self.reference(&head));
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    *is_first = false;
                    Notice::Strangers(self.kind, std::mem::take(&mut listing))
                }
                Some(Ok(Event::Apply(head))) => Notice::Stranger(self.kind, self.reference(&head)),
                Some(Ok(Event::Delete(head))) => Notice::Gone(self.reference(&head)),
                Some(Err(error)) => return Err(error.to_string()),
            };
            self.tell(notice).await;
        }
    }

    fn reference(&self, head: &PartialObjectMeta<DynamicObject>) -> ObjectRef {
        let namespace = head.namespace().unwrap_or_default();
        self.kind.object(&namespace, &head.name_any())
    }

    async fn tell(&self, notice: Notice) {
        // Who listens no more has gone, and so do we.
        let _gone = self.notices.send(notice).await;
    }
}
