//! `region members`, `remove` and `transfer-leader`: the servers of a region.

use std::time::Duration;

use anyhow::Result;
use hearth_types::{
    group::{Member, MemberRole},
    time::human_duration,
};
use serde_json::{Value, json};

use crate::{
    args::{Output, RegionMembers, RegionRemove, RegionTransfer},
    context::{Context, refusal},
    output::{self, table},
};

/// How long a server that is well may be silent: several heartbeats.
const WELL: Duration = Duration::from_secs(3);

/// Shows the servers, as the leader sees them.
pub(crate) async fn list(context: &Context, args: &RegionMembers) -> Result<()> {
    let members = context.client()?.members().await.map_err(|status| refusal(&status))?;
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        let values: Vec<_> = members.iter().map(as_json).collect();
        return output::documents(&values, true, output);
    }
    let mut rows = vec![["ID", "ADDRESS", "ROLE", "STATUS", "BEHIND"].map(str::to_owned).to_vec()];
    rows.extend(members.iter().map(row));
    output::lines(&table::layout(&rows));
    Ok(())
}

fn role(member: &Member) -> &'static str {
    match member.role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
    }
}

fn status(member: &Member) -> String {
    match member.silent {
        _ if member.leads => "leader".into(),
        None => "silent".into(),
        Some(silent) if silent > WELL => format!("silent for {}", human_duration(silent)),
        Some(_) if member.role == MemberRole::Learner => "learning".into(),
        Some(_) => "follower".into(),
    }
}

fn row(member: &Member) -> Vec<String> {
    let behind = member.behind.map_or_else(|| "<unknown>".to_owned(), |behind| behind.to_string());
    let address = table::one_line(&member.server.address);
    vec![member.server.id.to_string(), address, role(member).to_owned(), status(member), behind]
}

fn as_json(member: &Member) -> Value {
    json!({
        "id": member.server.id, "address": member.server.address, "role": role(member), "leads": member.leads,
        "behind": member.behind, "silentSeconds": member.silent.map(|silent| silent.as_secs_f64()),
    })
}

/// Removes a server for good.
pub(crate) async fn remove(context: &Context, args: &RegionRemove) -> Result<()> {
    context.client()?.remove_server(args.id).await.map_err(|status| refusal(&status))?;
    output::line(&format!("server {} removed", args.id));
    Ok(())
}

/// Has another server lead.
pub(crate) async fn transfer_leader(context: &Context, args: &RegionTransfer) -> Result<()> {
    let leader = context.client()?.transfer_leader(args.id).await.map_err(|status| refusal(&status))?;
    output::line(&format!("{leader} leads"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use MemberRole::{Learner, Voter};
    use hearth_types::group::Server;

    use super::*;

    #[test]
    fn a_row_says_how_a_server_is() {
        let member = |role, leads, behind, silent: Option<u64>| Member {
            server: Server { id: 2, address: "192.0.2.2:7443".into() },
            role,
            leads,
            behind,
            silent: silent.map(Duration::from_secs),
        };
        for (member, expected) in [
            (member(Voter, true, Some(0), Some(0)), ["voter", "leader", "0"]),
            (member(Voter, false, Some(7), Some(1)), ["voter", "follower", "7"]),
            (member(Voter, false, Some(7), Some(75)), ["voter", "silent for 75s", "7"]),
            (member(Voter, false, None, None), ["voter", "silent", "<unknown>"]),
            (member(Learner, false, Some(9_000), Some(0)), ["learner", "learning", "9000"]),
        ] {
            assert_eq!(row(&member)[2..], expected);
            assert_eq!(row(&member)[..2], ["2", "192.0.2.2:7443"]);
        }
    }
}
