//! `token create`: what an operator hands to a new device.

use anyhow::Result;

use crate::{
    args::TokenCreate,
    context::{Context, refusal},
    output,
};

/// Runs the verb. The token goes to stdout alone, so that it can be passed on.
pub(crate) async fn create(context: &Context, args: &TokenCreate) -> Result<()> {
    let owner = args.owner.as_deref().unwrap_or_default();
    let made = context.client()?.create_token(owner, args.valid).await.map_err(|status| refusal(&status))?;
    output::line(&made.token);
    let expires = hearth_types::Timestamp(made.expires_millis).seconds();
    let whose = if owner.is_empty() { String::new() } else { format!(" for a device of {owner}") };
    output::note(&format!("good for one device{whose}, until {expires}; use it there with: hearth join TOKEN"));
    Ok(())
}
