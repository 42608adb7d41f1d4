//! `token`: what an operator hands to a new device or server.

use anyhow::{Result, ensure};
use hearth_types::{
    Timestamp,
    token::{JoinToken, MAX_TOKEN_ADDRESSES},
};
use serde_json::json;

use crate::{
    args::{Output, TokenCreate, TokenDelete, TokenLs},
    context::{Context, now, refusal},
    output::{self, table},
};

/// Makes a token. It goes to stdout alone, so that it can be passed on.
pub(crate) async fn create(context: &Context, args: &TokenCreate) -> Result<()> {
    let client = context.client()?;
    // Zero is the region's default.
    let valid = args.valid.unwrap_or_default();
    let made = match &args.owner {
        Some(owner) if args.status => client.create_status_token(owner, valid).await,
        Some(owner) => client.create_token(owner, valid).await,
        None if args.server => client.create_server_token(valid).await,
        None if args.relay => client.create_relay_token(valid).await,
        None => client.create_token_for_any_owner(valid).await,
    };
    let made = made.map_err(|status| refusal(&status))?;
    if args.status {
        output::line(&made.token);
        output::note(&format!(
            "good until {}; whoever has the link sees what {} has here, and can change nothing; end it with: hearth token delete {}",
            Timestamp(made.expires_millis).seconds(),
            args.owner.as_deref().unwrap_or_default(),
            made.id
        ));
        return Ok(());
    }
    output::line(&leading_to(&made.token, &args.at)?);
    let expires = Timestamp(made.expires_millis).seconds();
    if args.server {
        output::note(&format!("good for one server, until {expires}; use it there with: hearth server --join TOKEN"));
        output::note(
            "Whoever has it gets the key of the region's CA by it and can be the region: keep it as you keep a key.",
        );
        return Ok(());
    }
    if args.relay {
        output::note(&format!("good for one relay, until {expires}; use it there with: hearth relay --join TOKEN"));
        return Ok(());
    }
    let whose = args.owner.as_ref().map(|owner| format!(" of {owner}")).unwrap_or_default();
    output::note(&format!("good for one device{whose}, until {expires}; use it there with: hearth join TOKEN"));
    Ok(())
}

/// A token that leads to these addresses, where some are given. The region knows a token by its secret alone.
fn leading_to(token: &str, at: &[String]) -> Result<String> {
    if at.is_empty() {
        return Ok(token.to_owned());
    }
    ensure!(at.len() <= MAX_TOKEN_ADDRESSES, "--at: a token has room for {MAX_TOKEN_ADDRESSES} addresses");
    let token: JoinToken = token.parse()?;
    Ok(JoinToken { addresses: at.to_vec(), ..token }.to_string())
}

/// Lists the tokens.
pub(crate) async fn list(context: &Context, args: &TokenLs) -> Result<()> {
    let tokens = context.client()?.list_tokens().await.map_err(|status| refusal(&status))?;
    let time = |millis: i64| Timestamp(millis).seconds().to_string();
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        let values: Vec<_> = tokens
            .iter()
            .map(|one| {
                json!({"id": one.id, "owner": one.owner, "created": time(one.created_millis),
                    "expires": time(one.expires_millis), "usedByDevice": one.used_by_device, "usedByKey": one.used_by_key,
                    "server": one.server, "status": one.status, "usedByServer": one.used_by_server, "relay": one.relay, "usedByRelay": one.used_by_relay})
            })
            .collect();
        return output::documents(&values, true, output);
    }
    let mut rows = vec![["ID", "OWNER", "STATE", "EXPIRES"].map(str::to_owned).to_vec()];
    for one in &tokens {
        let state = if !one.used_by_device.is_empty() {
            format!("used by {}", one.used_by_device)
        } else if one.used_by_server != 0 {
            format!("used by server {}", one.used_by_server)
        } else if !one.used_by_relay.is_empty() {
            format!("used by relay {}", one.used_by_relay)
        } else if one.expires_millis <= now().0 {
            "expired".to_owned()
        } else if one.status {
            "status page".to_owned()
        } else {
            "unused".to_owned()
        };
        let owner = match one.owner.as_str() {
            "" if one.server => "<server>".to_owned(),
            "" if one.relay => "<relay>".to_owned(),
            "" => "<any>".to_owned(),
            owner => owner.to_owned(),
        };
        let row = [one.id.clone(), owner, state, time(one.expires_millis)];
        rows.push(row.iter().map(|cell| table::one_line(cell)).collect());
    }
    output::lines(&table::layout(&rows));
    Ok(())
}

/// Deletes a token.
pub(crate) async fn delete(context: &Context, args: &TokenDelete) -> Result<()> {
    context.client()?.delete_token(&args.id).await.map_err(|status| refusal(&status))?;
    output::line(&format!("token {:?} deleted", args.id));
    Ok(())
}
