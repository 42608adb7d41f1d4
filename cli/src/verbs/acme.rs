//! `region acme`: from which public authority certificates are ordered.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use hearth_proto::v1::{AcmeResponse, AcmeSettings, AcmeStep};
use serde_json::{Value, json};

use crate::{
    args::{Output, RegionAcme},
    context::{Context, refusal},
    output::{self, table},
};

/// Directories that have a name.
const KNOWN: [(&str, &str); 2] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
];

/// Shows the settings, after a change where one is asked for.
pub(crate) async fn run(context: &Context, args: &RegionAcme) -> Result<()> {
    let (step, settings) = match &args.directory {
        Some(directory) => (AcmeStep::Set, Some(settings(args, directory)?)),
        None if args.off => (AcmeStep::Off, None),
        None => (AcmeStep::Unspecified, None),
    };
    let answer = context.client()?.acme(step, settings).await.map_err(|status| refusal(&status))?;
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        return output::documents(&[as_json(&answer)], false, output);
    }
    let Some(settings) = &answer.settings else {
        output::note("No public authority: the region's own signs, and whoever shall trust it needs its root.");
        return Ok(());
    };
    output::lines(&table::layout(&rows(&answer, settings)));
    if answer.account.is_empty() {
        output::note("There is no account yet; it is made now. `hearth get certificates -A` shows how orders go.");
    }
    Ok(())
}

fn settings(args: &RegionAcme, directory: &str) -> Result<AcmeSettings> {
    if !args.accept_terms {
        bail!(
            "an account at an authority needs your agreement to its terms of service: read them, and say --accept-terms"
        );
    }
    let known = KNOWN.iter().find(|(name, _)| *name == directory).map(|(_, url)| *url);
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let mailto = |mail: &String| if mail.starts_with("mailto:") { mail.clone() } else { format!("mailto:{mail}") };
    Ok(AcmeSettings {
        directory: known.unwrap_or(directory).to_owned(),
        contacts: args.contact.iter().map(mailto).collect(),
        roots_pem: args.roots.as_deref().map(read).transpose()?.unwrap_or_default().into_bytes().into(),
        eab_kid: args.eab_kid.clone().unwrap_or_default(),
        eab_key: args.eab_key_file.as_deref().map(read).transpose()?.unwrap_or_default().trim().to_owned(),
        certificates_per_week: args.per_week.unwrap_or_default(),
        issuers: args.caa_issuer.clone(),
        no_caa: args.no_caa,
        logs: args.ct_log.clone(),
    })
}

fn rows(answer: &AcmeResponse, settings: &AcmeSettings) -> Vec<Vec<String>> {
    let all = |list: &[String]| if list.is_empty() { "<none>".to_owned() } else { list.join(", ") };
    let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
    let row = |name: &str, value: String| vec![name.to_owned(), table::one_line(&value)];
    let mut rows = vec![
        row("DIRECTORY", settings.directory.clone()),
        row("ACCOUNT", or_none(&answer.account)),
        row("CONTACT", all(&settings.contacts)),
        row("EXTERNAL ACCOUNT", or_none(&settings.eab_kid)),
        row("PER WEEK", settings.certificates_per_week.to_string()),
    ];
    let caa = if answer.caa.is_empty() { vec!["<none>".to_owned()] } else { answer.caa.clone() };
    rows.extend(caa.into_iter().map(|line| row("CAA", line)));
    rows.extend(settings.logs.iter().map(|log| row("CT LOG", log.clone())));
    rows
}

fn as_json(answer: &AcmeResponse) -> Value {
    let Some(settings) = &answer.settings else { return json!({}) };
    json!({"directory": settings.directory, "account": answer.account, "contacts": settings.contacts,
        "externalAccount": settings.eab_kid, "certificatesPerWeek": settings.certificates_per_week, "caa": answer.caa,
        "logs": settings.logs})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_needs_a_yes_to_the_terms_and_known_authorities_have_names() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            acme: RegionAcme,
        }
        let parse = |words: &[&str]| Line::try_parse_from(std::iter::once(&"x").chain(words)).map(|line| line.acme);
        let args = parse(&["--directory", "letsencrypt-staging", "--contact", "a@b.example"]).expect("arguments");
        let said = |args: &RegionAcme| settings(args, args.directory.as_deref().expect("a directory"));
        assert!(said(&args).expect_err("no yes").to_string().contains("--accept-terms"));
        let args = RegionAcme { accept_terms: true, ..args };
        let settings = said(&args).expect("settings");
        assert_eq!(settings.directory, KNOWN[1].1);
        assert_eq!(settings.contacts, ["mailto:a@b.example"]);
        assert!(parse(&["--contact", "a@b.example"]).is_err() && parse(&["--off", "--directory", "x"]).is_err());
    }
}
