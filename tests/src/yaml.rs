//! Short forms of the objects that tests write again and again.

/// A namespace; `labels` as `key: value` lines.
#[must_use]
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{}",
        map("  labels", labels)
    )
}

/// A service account.
#[must_use]
pub fn service_account(namespace: &str, name: &str, labels: &[(&str, &str)]) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n{}",
        map("  labels", labels)
    )
}

/// What a pod runs and where.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name; also the value of its label `app`.
    pub name: &'a str,
    /// Service account.
    pub account: &'a str,
    /// Node.
    pub node: &'a str,
    /// Image.
    pub image: &'a str,
    /// Port with an HTTP readiness probe, if there is one.
    pub port: Option<u16>,
    /// Labels besides `app`.
    pub labels: &'a [(&'a str, &'a str)],
}

impl Pod<'_> {
    /// The object.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut labels = vec![("app", self.name)];
        labels.extend_from_slice(self.labels);
        let port = self.port.map_or_else(String::new, |port| {
            format!(
                "    ports:\n    - containerPort: {port}\n    readinessProbe:\n      tcpSocket:\n        port: {port}\n      periodSeconds: 1\n"
            )
        });
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n{}spec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n  - name: main\n    image: {}\n{port}",
            self.name,
            self.namespace,
            map("  labels", &labels),
            self.node,
            self.account,
            self.image,
        )
    }
}

/// A service over the pods whose label `app` is `app`; `headless` gives it no address.
#[must_use]
pub fn service(namespace: &str, name: &str, app: &str, port: u16, headless: bool) -> String {
    let address = if headless { "  clusterIP: None\n" } else { "" };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{address}  selector:\n    app: {app}\n  ports:\n  - name: http\n    port: {port}\n    targetPort: {port}\n"
    )
}

/// Several objects in one file.
#[must_use]
pub fn documents<S: AsRef<str>>(objects: impl IntoIterator<Item = S>) -> String {
    let objects: Vec<_> = objects
        .into_iter()
        .map(|o| o.as_ref().trim_end().to_owned() + "\n")
        .collect();
    objects.join("---\n")
}

fn map(key: &str, entries: &[(&str, &str)]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let indent = " ".repeat(key.len() - key.trim_start().len() + 2);
    let lines: Vec<_> = entries
        .iter()
        .map(|(k, v)| format!("{indent}{k}: \"{v}\"\n"))
        .collect();
    format!("{key}:\n{}", lines.concat())
}
