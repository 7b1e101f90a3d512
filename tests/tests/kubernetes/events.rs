//! Events: one for the same thing, with a count.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use isobar_kubernetes::{EventWriter, Note, Pace};
use isobar_objects::{Kind, ObjectRef};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use crate::run;

#[test]
fn the_same_thing_again_is_counted_and_new_things_are_bounded() {
    run(async |server| {
        server.namespace("shop").await?;
        let all: Api<Event> = Api::namespaced(server.cluster().client(), "shop");
        let pace = Pace {
            again: Duration::ZERO,
            burst: 4,
            refill: Duration::from_secs(3600),
            ..Pace::default()
        };
        let (_events, mut writer) =
            EventWriter::new(server.cluster(), "isobar-cni", "node-1", pace);
        let note = |uid: &str, message: &str| Note {
            about: ObjectRef::new(Kind::Pod, "shop", "cart"),
            uid: uid.to_owned(),
            reason: "RulesRepaired",
            message: message.to_owned(),
        };
        for message in ["first", "second", "third"] {
            writer.write(&note("1", message)).await?;
        }
        let found = all.list(&ListParams::default()).await?.items;
        ensure!(found.len() == 1, "{found:?}");
        let event = found.first().context("an event")?;
        ensure!(event.count == Some(3) && event.message.as_deref() == Some("third"));
        ensure!(event.type_.as_deref() == Some("Warning"), "{event:?}");
        ensure!(event.involved_object.uid.as_deref() == Some("1"));
        ensure!(event.involved_object.kind.as_deref() == Some("Pod"));
        for uid in ["2", "3"] {
            writer.write(&note(uid, "m")).await?;
        }
        ensure!(all.list(&ListParams::default()).await?.items.len() == 3);

        // One that the server has forgotten is made anew; it is the last that may be made now.
        all.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        for _ in 0..2 {
            writer.write(&note("1", "m")).await?;
        }
        writer.write(&note("4", "m")).await?;
        let found = all.list(&ListParams::default()).await?.items;
        ensure!(found.len() == 1 && found[0].count == Some(1), "{found:?}");

        // What comes soon after is counted without a word.
        let (_events, mut writer) =
            EventWriter::new(server.cluster(), "isobar-cni", "node-1", Pace::default());
        for _ in 0..3 {
            writer.write(&note("6", "m")).await?;
        }
        let found = all.list(&ListParams::default()).await?.items;
        ensure!(found.len() == 2, "{found:?}");
        ensure!(
            found.iter().all(|event| event.count == Some(1)),
            "{found:?}"
        );
        Ok(())
    });
}
