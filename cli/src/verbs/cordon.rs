//! `cordon` and `uncordon`: whether pods are placed on nodes.

use anyhow::Result;
use serde_json::{Value, json};

use super::modify::{chosen, modify};
use crate::{
    args::{Cordon, DryRun},
    context::Context,
    output, target,
};

/// Runs the verbs.
pub(crate) async fn run(context: &Context, args: &Cordon, cordon: bool) -> Result<()> {
    let info = target::kind("nodes")?;
    let keys: Vec<_> = if args.selector.is_some() {
        let found = chosen(context, &["nodes".to_owned()], args.selector.as_deref(), false).await?;
        found.into_iter().map(|(_, key)| key).collect()
    } else {
        // As kubectl, `nas` and `node/nas` both.
        let name = |word: &String| {
            word.strip_prefix("node/").or_else(|| word.strip_prefix("nodes/")).unwrap_or(word).to_owned()
        };
        args.nodes.iter().map(|word| context.key(info, &name(word))).collect()
    };
    let verb = if cordon { "cordoned" } else { "uncordoned" };
    let mut errors = Vec::new();
    for key in keys {
        let make = |node: &Value| {
            let so = node["spec"]["unschedulable"] == true;
            let wanted = if cordon { json!(true) } else { Value::Null };
            Ok((so != cordon).then(|| json!({"spec": {"unschedulable": wanted}})))
        };
        match modify(context, &key, DryRun::None, make).await {
            Ok(true) => output::line(&format!("{} {verb}", info.display_name(&key.name))),
            Ok(false) => output::line(&format!("{} already {verb}", info.display_name(&key.name))),
            Err(error) => errors.push(error),
        }
    }
    output::failures(&errors)
}
