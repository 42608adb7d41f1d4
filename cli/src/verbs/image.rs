//! `image`: this device's image store, and packing files into an image.

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hearth_agent::{Credentials, Images, News, Paths, PullPolicy, Transferred, Wanted};
use hearth_image::{
    ImageStore, ImportOptions, Platform, Reference,
    build::{self, BuildFile, BuildSpec},
};
use hearth_types::quantity::format_bytes;

use crate::{
    args::{ImageBuild, ImageImport, ImageLs, ImagePull, ImageRm, Output},
    data_dir::{DataDir, Role},
    output::{self, table},
};

/// How often the line of a pull is written anew.
const LINE_EVERY: Duration = Duration::from_millis(100);

/// Takes an image into the store of the device whose data directory this is, beside a running agent.
pub(crate) fn import(args: &ImageImport) -> Result<()> {
    let data = DataDir::create(&args.dir.data_dir)?;
    let store = ImageStore::open(&data.images())?;
    let options = ImportOptions { name: args.tag.clone(), ..ImportOptions::default() };
    for record in store.import(&args.path, &options)? {
        output::line(&format!("{} imported ({}, {})", record.reference, record.digest, record.platform));
    }
    note_without_agent(&data);
    Ok(())
}

/// An image in a store that no agent looks into is easily one in the wrong store.
fn note_without_agent(data: &DataDir) {
    if !data.is_locked(Role::Agent) {
        let root = data.root().display();
        output::note(&format!("note: no agent runs from {root}; --data-dir says which device's store is meant"));
    }
}

/// Fetches an image from its registry into the store of the device whose data directory this is, beside a running agent.
pub(crate) async fn pull(args: &ImagePull) -> Result<()> {
    let data = DataDir::create(&args.dir.data_dir)?;
    // Who types the name may have it from anywhere: no address is refused.
    let images = Arc::new(Images::open(&Paths::new(data.root()), None)?);
    let reference: Reference = args.reference.parse().context("the name of the image cannot be read")?;
    let policy = if args.always { PullPolicy::Always } else { PullPolicy::IfNotPresent };
    let wanted = Wanted { reference, policy, secrets: Credentials::anonymous(), guest: None };
    let progress = Mutex::new(Line::default());
    let tell = |news: News| progress.lock().unwrap_or_else(PoisonError::into_inner).tell(&news);
    let result = images.get(&wanted, &tell).await;
    progress.lock().unwrap_or_else(PoisonError::into_inner).end();
    let (image, _) = result?;
    output::line(&format!("{} is here ({})", image.reference, image.manifest_digest));
    note_without_agent(&data);
    Ok(())
}

/// The line on a terminal that says how far a pull has come; elsewhere nothing is said of it.
struct Line {
    is_terminal: bool,
    /// When it was written last; `None` while there is none.
    written: Option<Instant>,
}

impl Default for Line {
    fn default() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), written: None }
    }
}

impl Line {
    fn tell(&mut self, news: &News) {
        match news {
            News::Progress(so_far) if self.is_terminal => {
                if self.written.is_none_or(|written| written.elapsed() >= LINE_EVERY) {
                    self.written = Some(Instant::now());
                    output::overwrite(&in_words(so_far));
                }
            }
            News::Progress(_) | News::Pulling => {}
            News::Pulled(pulled, took, _) => {
                self.end();
                let (new, took) = (pulled.layers - pulled.known_layers, took.as_secs_f32());
                output::note(&format!("{new} of {} layers, {} bytes, {took:.1} s", pulled.layers, pulled.bytes));
            }
            News::Unreachable(error) => {
                self.end();
                output::note(&format!("warning: what is here is taken, since {error}"));
            }
        }
    }

    fn end(&mut self) {
        if self.written.take().is_some() {
            output::overwrite("");
        }
    }
}

fn in_words(so_far: &Transferred) -> String {
    let Transferred { layers_done, layers_total, bytes_done, bytes_total } = *so_far;
    if layers_total == 0 || bytes_done >= bytes_total {
        return if layers_total == 0 { "looking it up".into() } else { "unpacking".into() };
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (done, total) = (mib(bytes_done), mib(bytes_total));
    format!("{done:.1} of {total:.1} MiB, {layers_done} of {layers_total} layers")
}

/// Lists the store.
pub(crate) fn list(args: &ImageLs) -> Result<()> {
    let data = DataDir::existing(&args.dir.data_dir)?;
    let records = ImageStore::open(&data.images())?.list()?;
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        let values: Vec<_> = records.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        return output::documents(&values, true, output);
    }
    let mut rows = vec![["REFERENCE", "DIGEST", "PLATFORM", "SIZE"].map(str::to_owned).to_vec()];
    for record in records {
        let digest = record.digest.to_string();
        let short = digest.chars().take("sha256:".len() + 12).collect();
        let digest = if args.output == Some(Output::Wide) { digest } else { short };
        // Sizes are rounded up to whole MiB, to be read by people.
        let size = format_bytes(record.size.div_ceil(1 << 20) << 20);
        rows.push(vec![record.reference, digest, record.platform.to_string(), size]);
    }
    output::lines(&table::layout(&rows));
    Ok(())
}

/// Removes names from the store.
pub(crate) fn remove(args: &ImageRm) -> Result<()> {
    let data = DataDir::existing(&args.dir.data_dir)?;
    let store = ImageStore::open(&data.images())?;
    for reference in &args.references {
        if args.force {
            store.force_remove(reference)?;
        } else {
            store.remove(reference)?;
        }
        output::line(&format!("{reference} removed"));
    }
    Ok(())
}

/// Packs files into an OCI archive.
pub(crate) fn build(args: &ImageBuild) -> Result<()> {
    let platform = args.arch.as_deref().map_or_else(Platform::host, Platform::linux);
    let mut spec = BuildSpec::new(&args.tag, platform);
    spec.files = args.copy.iter().map(|text| copy(text)).collect::<Result<_>>()?;
    spec.entrypoint.clone_from(&args.entrypoint);
    spec.cmd.clone_from(&args.cmd);
    spec.env.clone_from(&args.env);
    spec.user = args.user.clone().unwrap_or_default();
    spec.working_dir = args.workdir.clone().unwrap_or_default();
    spec.exposed_ports.clone_from(&args.port);
    spec.base.clone_from(&args.base);
    let digest = build::build(&spec, &args.output)?;
    output::line(&format!("{} written ({}, {digest})", args.output.display(), args.tag));
    Ok(())
}

/// Reads `SOURCE:TARGET[:MODE]`.
fn copy(text: &str) -> Result<BuildFile> {
    let parts: Vec<_> = text.split(':').collect();
    let (host, in_image, mode) = match parts.as_slice() {
        [host, target] => (host, target, None),
        [host, target, mode] => {
            let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
            (host, target, Some(mode.with_context(|| format!("--copy {text:?}: the mode is octal, as 0755"))?))
        }
        _ => bail!("--copy {text:?}: must be SOURCE:TARGET[:MODE], as target/release/app:/app:0755"),
    };
    if !in_image.starts_with('/') {
        bail!("--copy {text:?}: the target must be an absolute path");
    }
    Ok(BuildFile { host: PathBuf::from(host), in_image: PathBuf::from(in_image), mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_said_in_words() {
        let so_far = Transferred { layers_done: 1, layers_total: 3, bytes_done: 1 << 19, bytes_total: 40 << 20 };
        assert_eq!(in_words(&so_far), "0.5 of 40.0 MiB, 1 of 3 layers");
        assert_eq!(in_words(&Transferred { bytes_done: 40 << 20, ..so_far }), "unpacking");
        assert_eq!(in_words(&Transferred::default()), "looking it up");
    }

    #[test]
    fn copies_are_read() {
        let file = copy("a/b:/c:0755").expect("a copy");
        assert_eq!((file.host, file.in_image, file.mode), ("a/b".into(), "/c".into(), Some(0o755)));
        assert_eq!(copy("a:/b").expect("a copy").mode, None);
        for bad in ["a", "a:b", "a:/b:9", "a:/b:0755:x", "a:/b:77777"] {
            assert!(copy(bad).is_err(), "{bad}");
        }
    }
}
