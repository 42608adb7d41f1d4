//! `image`: this device's image store, and packing files into an image.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use hearth_image::{
    ImageStore, ImportOptions, Platform,
    build::{self, BuildFile, BuildSpec},
};
use hearth_types::quantity::format_bytes;

use crate::{
    args::{ImageBuild, ImageImport, ImageLs, ImageRm, Output},
    data_dir::DataDir,
    output::{self, table},
};

/// Takes an image into the store of the device whose data directory this is, beside a running agent.
pub(crate) fn import(args: &ImageImport) -> Result<()> {
    let data = DataDir::create(&args.dir.data_dir)?;
    let store = ImageStore::open(&data.images())?;
    let options = ImportOptions { name: args.tag.clone(), ..ImportOptions::default() };
    for record in store.import(&args.path, &options)? {
        output::line(&format!("{} imported ({}, {})", record.reference, record.digest, record.platform));
    }
    Ok(())
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
    fn copies_are_read() {
        let file = copy("a/b:/c:0755").expect("a copy");
        assert_eq!((file.host, file.in_image, file.mode), ("a/b".into(), "/c".into(), Some(0o755)));
        assert_eq!(copy("a:/b").expect("a copy").mode, None);
        for bad in ["a", "a:b", "a:/b:9", "a:/b:0755:x", "a:/b:77777"] {
            assert!(copy(bad).is_err(), "{bad}");
        }
    }
}
