//! ConfigMaps and Secrets: their keys and values are people's, and stand as they are.

use base64::Engine as _;
use serde_json::Value;

use super::page::Page;
use crate::output::table::one_line;

/// The values as blocks, as kubectl has them.
pub(super) fn config_map(page: &mut Page, object: &Value) {
    page.line("");
    page.line("Data");
    page.line("====");
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        page.line(&format!("{}:", one_line(key)));
        page.line("----");
        for line in value.as_str().unwrap_or_default().split('\n') {
            // What moves the cursor does not reach the terminal; tabs and the lines themselves stay.
            let shown: String = line.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
            page.lines.push(shown);
        }
        page.line("");
    }
    page.line("BinaryData");
    page.line("====");
    for (key, value) in object["binaryData"].as_object().into_iter().flatten() {
        page.line(&format!("{}: {} bytes", one_line(key), size(value)));
    }
    page.line("");
    if object["immutable"] == true {
        page.field("Immutable", "true");
    }
}

/// Secrets are described without their values.
pub(super) fn secret(page: &mut Page, object: &Value) {
    page.field("Type", object["type"].as_str().unwrap_or_default());
    page.line("");
    page.line("Data");
    page.line("====");
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        page.line(&format!("{}:  {} bytes", one_line(key), size(value)));
    }
    page.line("");
    if object["immutable"] == true {
        page.field("Immutable", "true");
    }
}

fn size(base64: &Value) -> usize {
    let text = base64.as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(text).map_or(0, |bytes| bytes.len())
}
