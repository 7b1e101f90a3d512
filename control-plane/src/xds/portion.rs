//! How much one response carries. Proxies refuse a message of more than 200 MiB and end the stream, and what
//! they hold meanwhile is memory that the node lacks.

use std::sync::Arc;

use super::catalog::Resource;

/// Bytes of resources in one response; one resource may be longer. The rest follows when this is answered.
pub(super) const PORTION: usize = 32 << 20;
/// Longest resource that is sent, in bytes. One that is longer is told of and kept back: clients stay with the
/// version before, and get nothing that needs it.
pub(super) const LONGEST: usize = 64 << 20;

/// Keeps as many resources, from the first on, as fit into `most` bytes, but one at least. True if that
/// leaves some out.
pub(super) fn cut(resources: &mut Vec<Arc<Resource>>, most: usize) -> bool {
    let mut sum = 0;
    let beyond = resources.iter().position(|one| {
        sum += one.field.len();
        sum > most
    });
    let kept = beyond.map_or(resources.len(), |at| at.max(1));
    let leaves_some = kept < resources.len();
    resources.truncate(kept);
    leaves_some
}

/// What is said of a resource that is not sent.
pub(super) fn told(resource: &Resource) -> String {
    format!(
        "{} has {} bytes, of which at most {LONGEST} are sent: it is kept back, and what needs it",
        resource.name,
        resource.field.len()
    )
}
