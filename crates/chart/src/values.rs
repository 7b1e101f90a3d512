use serde_json::{Map, Value};

/// What a user sets for the family: under `global` for all charts, under a chart's name for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(Value);

/// Why values cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValuesError {
    /// The text is no YAML.
    #[error("{0}")]
    Yaml(String),
    /// The text holds something else than a map.
    #[error("values are a map of names to values")]
    NoMap,
    /// An assignment is not `PATH=VALUE`.
    #[error("{0:?} is not PATH=VALUE, such as control-plane.replicaCount=2")]
    Assignment(String),
    /// A part of the path is no map.
    #[error("{path}: {part} is no map")]
    Path {
        /// The whole path.
        path: String,
        /// The part.
        part: String,
    },
    /// Only charts and `global` stand at the top.
    #[error("there is no chart {name:?}: values stand under global, {charts}")]
    Top {
        /// What was found.
        name: String,
        /// The charts.
        charts: String,
    },
}

impl Default for Values {
    fn default() -> Self {
        Self(Value::Object(Map::new()))
    }
}

impl Values {
    /// Reads YAML.
    ///
    /// # Errors
    /// When it is none, or not a map.
    pub fn read(text: &str) -> Result<Self, ValuesError> {
        let read: Value =
            serde_saphyr::from_str(text).map_err(|error| ValuesError::Yaml(error.to_string()))?;
        match read {
            Value::Null => Ok(Self::default()),
            Value::Object(_) => Ok(Self(read)),
            _ => Err(ValuesError::NoMap),
        }
    }

    /// Puts `other` on top; a null takes a value away, so that the chart's own counts.
    pub fn add(&mut self, other: &Self) {
        merge(&mut self.0, &other.0);
    }

    /// `PATH=VALUE[,PATH=VALUE…]` as Helm's `--set`: numbers, `true`, `false` and `null` are what they
    /// look like, `{a,b}` is a list, and a backslash makes a comma or a dot an ordinary one.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn set(&mut self, assignments: &str) -> Result<(), ValuesError> {
        for assignment in split(assignments, ',') {
            let wrong = || ValuesError::Assignment(assignment.clone());
            let (path, text) = assignment.split_once('=').ok_or_else(wrong)?;
            let parts: Vec<String> = split(path, '.').iter().map(|part| bare(part)).collect();
            if parts.iter().any(String::is_empty) {
                return Err(wrong());
            }
            let mut at = &mut self.0;
            for part in &parts[..parts.len() - 1] {
                let map = at.as_object_mut().ok_or_else(|| ValuesError::Path {
                    path: path.to_owned(),
                    part: part.clone(),
                })?;
                at = map.entry(part.clone()).or_insert_with(|| Map::new().into());
            }
            let last = &parts[parts.len() - 1];
            let map = at.as_object_mut().ok_or_else(|| ValuesError::Path {
                path: path.to_owned(),
                part: last.clone(),
            })?;
            map.insert(last.clone(), typed(text));
        }
        Ok(())
    }

    /// True if the value `name` of a chart is `true`.
    #[must_use]
    pub fn is_set(&self, chart: &str, name: &str) -> bool {
        self.0[chart][name] == true
    }

    /// Refuses what stands neither under `global` nor under one of `charts`.
    ///
    /// # Errors
    /// At the first such name.
    pub fn only(&self, charts: &[&str]) -> Result<(), ValuesError> {
        let names = self.0.as_object().into_iter().flat_map(Map::keys);
        let stranger = names
            .into_iter()
            .find(|name| *name != "global" && !charts.contains(&name.as_str()));
        match stranger {
            None => Ok(()),
            Some(name) => Err(ValuesError::Top {
                name: name.clone(),
                charts: charts.join(", "),
            }),
        }
    }

    /// As YAML.
    #[must_use]
    pub fn text(&self) -> String {
        crate::yaml::block(&self.0)
    }

    /// The values of one chart, which has a `global` part or not.
    pub(crate) fn of(&self, chart: &str, has_global: bool) -> Value {
        let mut values = self.0[chart].clone();
        if values.is_null() {
            values = Map::new().into();
        }
        let global = &self.0["global"];
        if has_global
            && !global.is_null()
            && let Some(map) = values.as_object_mut()
        {
            let mut both = global.clone();
            if let Some(own) = map.get("global") {
                merge(&mut both, own);
            }
            map.insert("global".to_owned(), both);
        }
        values
    }
}

/// Puts `above` over `below`: maps key by key, everything else whole; null takes away.
pub(crate) fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                if value.is_null() {
                    below.remove(key);
                    continue;
                }
                merge(below.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

/// Parts between `at`, but not where a backslash stands before it or within braces.
fn split(text: &str, at: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut is_escaped, mut depth) = (false, 0_usize);
    for c in text.chars() {
        let is_end = c == at && !is_escaped && depth == 0;
        if is_end {
            parts.push(String::new());
            continue;
        }
        match c {
            '{' if !is_escaped => depth += 1,
            '}' if !is_escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        is_escaped = c == '\\' && !is_escaped;
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// Without the backslashes.
fn bare(text: &str) -> String {
    let mut bare = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        bare.push(if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        });
    }
    bare
}

fn typed(text: &str) -> Value {
    let inner = text
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    if let Some(inner) = inner {
        if inner.is_empty() {
            return Vec::<Value>::new().into();
        }
        return split(inner, ',').iter().map(|item| typed(item)).collect();
    }
    let is_padded = text.len() > 1 && text.starts_with('0');
    match text {
        "true" => true.into(),
        "false" => false.into(),
        "null" => Value::Null,
        _ => match text.parse::<i64>() {
            Ok(number) if !is_padded && !text.starts_with('+') => number.into(),
            _ => bare(text).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn assignments_are_helms() {
        let mut values = Values::default();
        for text in [
            "global.hub=ghcr.io/x,global.tag=007",
            "control-plane.replicaCount=2,control-plane.autoscaleEnabled=true",
            r"node.nodeSelector.kubernetes\.io/arch=amd64",
            r"global.logLevel=info\,h2=debug",
            "node.agent.excludeNamespaces={kube-system,b}",
        ] {
            values.set(text).unwrap();
        }
        let expected = json!({
            "global": { "hub": "ghcr.io/x", "tag": "007", "logLevel": "info,h2=debug" },
            "control-plane": { "replicaCount": 2, "autoscaleEnabled": true },
            "node": {
                "nodeSelector": { "kubernetes.io/arch": "amd64" },
                "agent": { "excludeNamespaces": ["kube-system", "b"] },
            },
        });
        assert_eq!(values.0, expected);
        for wrong in ["a", "=b", "a..b=c", "global.hub.x=1"] {
            assert!(values.set(wrong).is_err(), "{wrong}");
        }
        assert!(values.only(&["control-plane", "node"]).is_ok());
        let stranger = values.only(&["node"]).unwrap_err().to_string();
        assert!(stranger.contains("control-plane"), "{stranger}");
    }

    #[test]
    fn what_is_nearer_counts() {
        let mut values =
            Values::read("global: {tag: a, hub: b}\nnode: {global: {tag: c}}").unwrap();
        values.add(&Values::read("global: {hub: null}").unwrap());
        assert_eq!(values.of("node", true), json!({ "global": { "tag": "c" } }));
        assert_eq!(values.of("crds", false), json!({}));
        assert_eq!(Values::read("").unwrap(), Values::default());
        assert!(Values::read("- a").is_err());
        assert!(Values::read("a: [").is_err());
    }
}
