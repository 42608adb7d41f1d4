//! `api-resources`: the kinds that there are.

use hearth_types::registry;

use crate::{
    args::{ApiResources, Output},
    output::{self, table},
};

/// Runs the verb.
pub(crate) fn run(args: &ApiResources) {
    let kinds = registry::all().iter().filter(|info| args.namespaced.is_none_or(|asked| asked == info.is_namespaced()));
    if args.output == Some(Output::Name) {
        kinds.for_each(|info| output::line(&info.resource()));
        return;
    }
    let heading = ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"].map(str::to_owned).to_vec();
    let rows = kinds.map(|info| {
        let namespaced = info.is_namespaced().to_string();
        vec![info.plural.to_owned(), info.short_names.join(","), info.api_version(), namespaced, info.kind.to_owned()]
    });
    let rows: Vec<_> = (!args.no_headers).then_some(heading).into_iter().chain(rows).collect();
    output::lines(&table::layout(&rows));
}
