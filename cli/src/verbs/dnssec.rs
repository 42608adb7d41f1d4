//! `region dnssec`: the keys by which the zone is signed, and their rollover.

use std::time::Duration;

use anyhow::Result;
use hearth_proto::v1::{DnssecKey, DnssecResponse, DnssecStep};
use hearth_types::Timestamp;
use serde_json::{Value, json};

use crate::{
    args::{Output, RegionDnssec, Roll},
    context::{Context, refusal},
    output::{self, table},
};

/// Shows the keys, after a step of their rollover where one is asked for.
pub(crate) async fn run(context: &Context, args: &RegionDnssec) -> Result<()> {
    let step = match (args.roll, args.ds_seen) {
        (Some(Roll::Zsk), _) => DnssecStep::RollZsk,
        (Some(Roll::Ksk), _) => DnssecStep::RollKsk,
        (None, true) => DnssecStep::DsSeen,
        (None, false) => DnssecStep::Unspecified,
    };
    let ttl = Duration::from_secs(args.parent_ttl);
    let answer = context.client()?.dnssec(step, ttl).await.map_err(|status| refusal(&status))?;
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        return output::documents(&[as_json(&answer)], false, output);
    }
    let mut rows = vec![["KEY", "TAG", "PHASE", "SIGNS FROM", "SIGNS UNTIL"].map(str::to_owned).to_vec()];
    rows.extend(answer.keys.iter().map(row));
    output::lines(&table::layout(&rows));
    output::line("");
    for line in ds(&answer) {
        output::line(line);
    }
    output::note(note(&answer));
    Ok(())
}

fn role(key: &DnssecKey) -> &'static str {
    if key.ksk { "KSK" } else { "ZSK" }
}

fn time(millis: i64) -> Option<String> {
    (millis > 0).then(|| Timestamp(millis).seconds().to_string())
}

fn row(key: &DnssecKey) -> Vec<String> {
    let shown = |millis| time(millis).unwrap_or_else(|| "-".to_owned());
    vec![
        role(key).to_owned(),
        key.tag.to_string(),
        table::one_line(&key.phase),
        shown(key.active_millis),
        shown(key.retired_millis),
    ]
}

fn ds(answer: &DnssecResponse) -> impl Iterator<Item = &str> {
    answer.keys.iter().map(|key| key.ds.as_str()).filter(|line| !line.is_empty())
}

/// What a person does with it.
fn note(answer: &DnssecResponse) -> &'static str {
    if answer.keys.iter().any(|key| key.phase == "waits-for-ds") {
        "Put all of these DS records into the parent zone, and once they are there run `hearth region dnssec --ds-seen`. A parent that reads CDS \
         records does so by itself."
    } else {
        "The parent zone has exactly these DS records, or none, and then nobody checks the signatures."
    }
}

fn as_json(answer: &DnssecResponse) -> Value {
    let keys: Vec<Value> = answer
        .keys
        .iter()
        .map(|key| {
            json!({"role": role(key), "tag": key.tag, "phase": key.phase, "created": time(key.created_millis),
                "active": time(key.active_millis), "retired": time(key.retired_millis)})
        })
        .collect();
    json!({"zone": answer.zone, "keys": keys, "ds": ds(answer).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parent_needs_is_shown_and_what_is_to_be_done() {
        let key = |ksk, phase: &str, ds: &str| DnssecKey {
            ksk,
            tag: 7,
            phase: phase.into(),
            created_millis: 1_000,
            active_millis: 1_000,
            retired_millis: 0,
            ds: ds.into(),
        };
        let mut answer = DnssecResponse {
            zone: "zone".into(),
            keys: vec![key(true, "active", "zone. IN DS 1"), key(false, "active", "")],
        };
        assert_eq!(row(&answer.keys[0]), ["KSK", "7", "active", "1970-01-01T00:00:01Z", "-"]);
        assert!(note(&answer).contains("exactly these"));
        answer.keys.push(key(true, "waits-for-ds", "zone. IN DS 2"));
        assert!(note(&answer).contains("--ds-seen"));
        assert_eq!(as_json(&answer)["ds"], json!(["zone. IN DS 1", "zone. IN DS 2"]));
    }
}
