//! Writing the dump of a big mesh: object by object, so that not all of them are there twice.

use std::sync::Arc;

use isobar_telemetry::Reply;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tokio::sync::Mutex;

use super::Admin;

/// A list whose entries are made one after another, as they are written.
pub(super) struct InTurn<T, F> {
    all: Vec<T>,
    show: F,
}

impl<T, F: Fn(&T) -> Value> InTurn<T, F> {
    pub(super) const fn new(all: Vec<T>, show: F) -> Self {
        Self { all, show }
    }
}

impl<T, F: Fn(&T) -> Value> Serialize for InTurn<T, F> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.all.iter().map(&self.show))
    }
}

/// Writes dumps, one at a time and on a thread of its own: the control thread answers pods' DNS meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    admin: Admin,
    // Held while one is made.
    busy: Arc<Mutex<()>>,
}

impl Writer {
    pub(super) fn new(admin: Admin) -> Self {
        Self {
            admin,
            busy: Arc::default(),
        }
    }

    pub(super) async fn reply(self) -> Reply {
        let busy = Arc::clone(&self.busy).lock_owned().await;
        let write = move || {
            let reply = Reply::json(&self.admin.config_dump());
            drop(busy);
            reply
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.unwrap_or_else(|error| {
            Reply::text(http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn entries_are_made_when_it_is_their_turn() {
        let made = Cell::new(0);
        let list = InTurn::new(vec![1, 2, 3], |number: &u32| {
            made.set(made.get() + 1);
            (*number).into()
        });
        assert_eq!(made.get(), 0);
        assert_eq!(serde_json::to_string(&list).unwrap(), "[1,2,3]");
        assert_eq!(made.get(), 3);
    }
}
