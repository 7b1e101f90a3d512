//! A network's configuration with and without the plugin: text to text.

use serde_json::{Map, Value};

use crate::cni::PLUGIN;

/// Name of a list that is made of a configuration without one.
const UNNAMED: &str = "k8s-pod-network";

/// Why the plugin cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It is no network's configuration.
    #[error("it is no network configuration: {0}")]
    NoNetwork(String),
}

/// A configuration that leads through the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chained {
    /// The list.
    pub text: String,
    /// It was a list before, not a single plugin's configuration.
    pub was_list: bool,
    /// It is not what was there before.
    pub changed: bool,
}

/// True if a runtime would take the text for a network's configuration.
#[must_use]
pub fn is_network(text: &str) -> bool {
    parse(text).is_ok()
}

/// The configuration with `entry` as its last plugin, and no other of its type. Everything else
/// keeps its value and its order.
///
/// # Errors
/// When the text is no network's configuration.
pub fn with_plugin(text: &str, entry: &Value) -> Result<Chained, ChainError> {
    let mut list = parse(text)?;
    let was_list = list.contains_key("plugins");
    if !was_list {
        list = as_list(list);
    }
    let mut plugins = plugins_of(&mut list);
    let is_there = plugins.last() == Some(entry)
        && plugins.iter().filter(|plugin| is_ours(plugin)).count() == 1;
    if was_list && is_there {
        return Ok(Chained {
            text: text.to_owned(),
            was_list,
            changed: false,
        });
    }
    plugins.retain(|plugin| !is_ours(plugin));
    plugins.push(entry.clone());
    list.insert("plugins".to_owned(), plugins.into());
    Ok(Chained {
        text: written(list),
        was_list,
        changed: true,
    })
}

/// The configuration without the plugin; none if it is not in it.
#[must_use]
pub fn without_plugin(text: &str) -> Option<String> {
    let mut list = parse(text).ok()?;
    let mut plugins = plugins_of(&mut list);
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.len() == before {
        return None;
    }
    list.insert("plugins".to_owned(), plugins.into());
    Some(written(list))
}

fn parse(text: &str) -> Result<Map<String, Value>, ChainError> {
    let wrong = |why: &str| ChainError::NoNetwork(why.to_owned());
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(&error.to_string()))?;
    let Value::Object(object) = value else {
        return Err(wrong("it is no object"));
    };
    match (object.get("plugins"), object.get("type")) {
        (Some(Value::Array(plugins)), _) if plugins.iter().any(|plugin| !is_ours(plugin)) => {
            Ok(object)
        }
        (Some(_), _) => Err(wrong("it lists no plugin of a network")),
        (None, Some(Value::String(kind))) if kind != PLUGIN => Ok(object),
        (None, _) => Err(wrong("it has neither plugins nor a type")),
    }
}

/// A single plugin's configuration as a list of one. Version and name belong to the list.
fn as_list(mut single: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for (key, default) in [("cniVersion", "0.3.1"), ("name", UNNAMED)] {
        let value = single.shift_remove(key);
        list.insert(key.to_owned(), value.unwrap_or_else(|| default.into()));
    }
    list.insert("plugins".to_owned(), vec![Value::Object(single)].into());
    list
}

/// Takes the list's plugins out of it.
fn plugins_of(list: &mut Map<String, Value>) -> Vec<Value> {
    match list.get_mut("plugins").map(Value::take) {
        Some(Value::Array(plugins)) => plugins,
        _ => Vec::new(),
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"].as_str() == Some(PLUGIN)
}

fn written(list: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIST: &str = r#"{
  "name": "net",
  "cniVersion": "1.0.0",
  "plugins": [
    {"type": "bridge", "ipam": {"type": "host-local"}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ],
  "extra": 1.5
}"#;

    fn entry() -> Value {
        json!({"type": PLUGIN, "runDir": "/run/x"})
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_plugin_comes_last_and_going_leaves_what_was_there() {
        let chained = with_plugin(LIST, &entry()).unwrap();
        assert!(chained.was_list && chained.changed);
        let mut expected = value(LIST);
        expected["plugins"].as_array_mut().unwrap().push(entry());
        assert_eq!(value(&chained.text), expected);
        let keys: Vec<_> = value(&chained.text)
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        assert_eq!(keys, ["name", "cniVersion", "plugins", "extra"]);
        let back = without_plugin(&chained.text).unwrap();
        assert_eq!(value(&back), value(LIST));
        assert_eq!(without_plugin(LIST), None);
    }

    #[test]
    fn what_is_in_place_is_not_written_again() {
        let once = with_plugin(LIST, &entry()).unwrap().text;
        let twice = with_plugin(&once, &entry()).unwrap();
        assert_eq!((twice.text.as_str(), twice.changed), (once.as_str(), false));
    }

    #[test]
    fn older_entries_and_wrong_places_are_mended() {
        let older = json!({"type": PLUGIN, "runDir": "/run/old"});
        for plugins in [
            json!([older, {"type": "bridge"}]),
            json!([{"type": "bridge"}, older]),
            json!([entry(), {"type": "bridge"}]),
            json!([{"type": "bridge"}, entry(), entry()]),
        ] {
            let text = json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins}).to_string();
            let chained = with_plugin(&text, &entry()).unwrap();
            assert!(chained.changed, "{text}");
            let expected = json!([{"type": "bridge"}, entry()]);
            assert_eq!(value(&chained.text)["plugins"], expected);
        }
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single = json!({"cniVersion": "0.4.0", "type": "bridge", "bridge": "b0"}).to_string();
        let chained = with_plugin(&single, &entry()).unwrap();
        assert!(!chained.was_list);
        assert_eq!(
            value(&chained.text),
            json!({"cniVersion": "0.4.0", "name": "k8s-pod-network",
                "plugins": [{"type": "bridge", "bridge": "b0"}, entry()]})
        );
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"plugins": []}"#,
            r#"{"plugins": 1}"#,
            r#"{"plugins": [{"type": "isobar-cni"}]}"#,
            r#"{"type": "isobar-cni"}"#,
        ] {
            assert!(with_plugin(text, &entry()).is_err(), "{text}");
            assert!(!is_network(text));
            assert_eq!(without_plugin(text), None);
        }
    }
}
