//! `exportTo`: which namespaces an object is there for.

/// An object as waypoints get it, and whom its author lets see it.
#[derive(Debug)]
pub(super) struct Visible<T> {
    /// The message.
    pub(super) wire: T,
    /// Namespaces, `.` for its own, `*` for all; empty means all.
    pub(super) export_to: Vec<String>,
}

impl<T> Visible<T> {
    /// True if an object of namespace `own` is there for namespace `other`.
    pub(super) fn is_seen_from(&self, other: &str, own: &str) -> bool {
        is_exported(&self.export_to, other, own)
    }
}

/// True if an object of namespace `own` with this `exportTo` is there for namespace `other`.
pub(crate) fn is_exported(export_to: &[String], other: &str, own: &str) -> bool {
    let names = |entry: &String| match entry.as_str() {
        "*" => true,
        "." => other == own,
        name => name == other,
    };
    export_to.is_empty() || export_to.iter().any(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_there_for_the_namespaces_they_name() {
        for (export_to, own, elsewhere) in [
            (vec![], true, true),
            (vec!["*"], true, true),
            (vec!["."], true, false),
            (vec!["web"], false, true),
            (vec![".", "web"], true, true),
            // Nobody.
            (vec!["~"], false, false),
        ] {
            let list: Vec<String> = export_to.into_iter().map(str::to_owned).collect();
            assert_eq!(is_exported(&list, "shop", "shop"), own, "{list:?}");
            assert_eq!(is_exported(&list, "web", "shop"), elsewhere, "{list:?}");
        }
    }
}
