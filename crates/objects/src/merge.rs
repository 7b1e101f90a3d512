use serde_json::{Map, Value};

/// JSON merge patch (RFC 7386): maps merge, null deletes a key, everything else replaces.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(key);
        } else {
            merge_patch(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Joins `later` onto the patch `earlier`, so that applying the result does what applying both
/// would: unlike [`merge_patch`], nulls are kept.
pub(crate) fn join_patches(earlier: &mut Value, later: &Value) {
    match (earlier, later) {
        (Value::Object(earlier), Value::Object(later)) => {
            for (key, value) in later {
                match earlier.get_mut(key) {
                    Some(inner) if inner.is_object() && value.is_object() => {
                        join_patches(inner, value);
                    }
                    _ => {
                        earlier.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (earlier, later) => *earlier = later.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merges_as_the_rfc_says() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!("text"), json!({"a": {"b": null}}), json!({"a": {}})),
        ] {
            let mut merged = target;
            merge_patch(&mut merged, &patch);
            assert_eq!(merged, result);
        }
    }

    #[test]
    fn joined_patches_do_what_both_do() {
        let first = json!({"a": {"x": 1, "y": 2}, "b": 1});
        let second = json!({"a": {"x": null, "z": 3}, "b": null});
        let mut joined = first.clone();
        join_patches(&mut joined, &second);
        for start in [json!({}), json!({"a": {"x": 9, "w": 8}, "b": 7})] {
            let (mut one, mut two) = (start.clone(), start);
            merge_patch(&mut one, &first);
            merge_patch(&mut one, &second);
            merge_patch(&mut two, &joined);
            assert_eq!(one, two);
        }
    }
}
