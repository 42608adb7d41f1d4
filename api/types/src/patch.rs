//! JSON merge patch (RFC 7386) and the three-way merge behind `apply`.

use serde_json::{Map, Value};

/// The annotation in which `apply` keeps what was applied last; kubectl's, so that both can be used on
/// one object.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Applies a JSON merge patch: objects are merged, null removes, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
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
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// What `apply` makes of an object: fields that `last` had and `wanted` no longer has are removed,
/// fields of `wanted` are set, and whatever others wrote stays. Lists are replaced as a whole.
///
/// `wanted` becomes the new value of the annotation [`LAST_APPLIED`].
pub fn three_way(current: &Value, last: Option<&Value>, wanted: &Value) -> Value {
    let mut merged = current.clone();
    if let Some(last) = last {
        remove_dropped(&mut merged, last, wanted);
    }
    merge(&mut merged, wanted);
    merged
}

fn remove_dropped(target: &mut Value, last: &Value, wanted: &Value) {
    let (Value::Object(target), Value::Object(last)) = (target, last) else {
        return;
    };
    for (key, old) in last {
        match wanted.get(key) {
            None | Some(Value::Null) => {
                target.remove(key);
            }
            Some(new) => {
                if let Some(inner) = target.get_mut(key) {
                    remove_dropped(inner, old, new);
                }
            }
        }
    }
}

/// What was applied last, from an object's annotation. Values of a ConfigMap's or Secret's data may be empty texts in it.
pub fn last_applied(object: &Value) -> Option<Value> {
    let text = object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    serde_json::from_str(text).ok()
}

/// Writes the annotation [`LAST_APPLIED`]. Of a ConfigMap or Secret it has the keys of the data alone: the merge looks at
/// nothing else, and twice the data would not fit into one object.
pub fn set_last_applied(object: &mut Value, applied: &Value) {
    let text = if matches!(applied["kind"].as_str(), Some("ConfigMap" | "Secret")) {
        crate::object::canonical(&without_data(applied.clone()))
    } else {
        crate::object::canonical(applied)
    };
    let text = String::from_utf8(text).unwrap_or_default();
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let annotations = meta.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(LAST_APPLIED.into(), Value::String(text));
    }
}

fn without_data(mut applied: Value) -> Value {
    for field in ["data", "binaryData", "stringData"] {
        for value in applied.get_mut(field).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
            if value.is_string() {
                *value = Value::String(String::new());
            }
        }
    }
    applied
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patch_follows_rfc_7386() {
        // The table of the RFC's appendix A.
        for (target, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut out = target.clone();
            merge(&mut out, &patch);
            assert_eq!(out, expected, "{target} {patch}");
        }
    }

    #[test]
    fn apply_removes_what_was_applied_before_and_keeps_what_others_wrote() {
        let last = json!({"spec": {"replicas": 2, "paused": true}, "metadata": {"labels": {"a": "1", "b": "2"}}});
        let current = json!({"spec": {"replicas": 2, "paused": true, "defaulted": 7}, "status": {"x": 1},
            "metadata": {"labels": {"a": "1", "b": "2", "theirs": "3"}}});
        let wanted = json!({"spec": {"replicas": 3}, "metadata": {"labels": {"a": "1"}}});
        assert_eq!(
            three_way(&current, Some(&last), &wanted),
            json!({"spec": {"replicas": 3, "defaulted": 7}, "status": {"x": 1},
                "metadata": {"labels": {"a": "1", "theirs": "3"}}})
        );
    }

    #[test]
    fn of_configuration_only_the_keys_are_kept() {
        for kind in ["ConfigMap", "Secret", "App"] {
            let applied = json!({"kind": kind, "data": {"a": "long", "b": null, "c": 1}, "binaryData": {"d": "long"}});
            let mut object = json!({"metadata": {}});
            set_last_applied(&mut object, &applied);
            let kept = last_applied(&object).expect("written");
            if kind == "App" {
                assert_eq!(kept, applied);
            } else {
                assert_eq!(kept["data"], json!({"a": "", "b": null, "c": 1}), "{kind}");
                assert_eq!(kept["binaryData"], json!({"d": ""}), "{kind}");
            }
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
            any::<bool>().prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn applying_twice_changes_nothing(current in any_json(), last in any_json(), wanted in any_json()) {
            let once = three_way(&current, Some(&last), &wanted);
            let twice = three_way(&once, Some(&wanted), &wanted);
            prop_assert_eq!(once, twice);
        }
    }
}
