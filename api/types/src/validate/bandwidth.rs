//! How much may be sent and received: an object's field, and the annotations of pods.

use serde_json::Value;

use super::Report;
use crate::kinds::{BANDWIDTH_ANNOTATIONS, bandwidth_bits};

/// Validates `bandwidth` in `of`, which is at `path`.
pub(super) fn field(of: &Value, path: &str, report: &mut Report) {
    for way in ["ingress", "egress"] {
        if let Some(text) = of.get("bandwidth").and_then(|both| both.get(way)).and_then(Value::as_str)
            && let Err(why) = bandwidth_bits(text)
        {
            report.wrong(format!("{path}.bandwidth.{way}"), format!("{text:?}: {why}"));
        }
    }
}

/// Validates the annotations of the pod, workload or template whose metadata is at a pointer. What is unchanged was accepted once, maybe by a version
/// that did not know them: the rest must still be changeable.
pub(super) fn annotations(object: &Value, old: Option<&Value>, pointer: &str, report: &mut Report) {
    for key in BANDWIDTH_ANNOTATIONS {
        let said = |object: &Value| Some(object.pointer(pointer)?.get("annotations")?.get(key)?.as_str()?.to_owned());
        let text = said(object);
        if let Some(text) = text.as_deref().filter(|_| old.and_then(said) != text)
            && let Err(why) = bandwidth_bits(text)
        {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            report.wrong(format!("{path}.annotations.{key}"), format!("{text:?}: {why}"));
        }
    }
}
