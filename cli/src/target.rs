//! What objects a command line names: `pods`, `pods,routes`, `pod a b`, `pod/a route/b`, `all`.

use anyhow::{Result, anyhow, bail};
use hearth_types::registry::{self, KindInfo};

/// What `all` stands for: what an owner runs.
const ALL: [&str; 5] = ["Install", "Deployment", "ReplicaSet", "Pod", "Route"];

/// A kind, and one object of it or all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) info: &'static KindInfo,
    pub(crate) name: Option<&'a str>,
}

/// Reads the arguments.
pub(crate) fn parse(arguments: &[String]) -> Result<Vec<Target<'_>>> {
    let Some((first, names)) = arguments.split_first() else { bail!("name a kind, as `pods` or `pod/NAME`") };
    if first.contains('/') {
        return arguments.iter().map(|argument| one(argument)).collect();
    }
    if let Some(odd) = names.iter().find(|name| name.contains('/')) {
        bail!(
            "there is no need to name a kind twice: write `{first} NAME ...` or KIND/NAME ..., not {odd:?} after {first:?}"
        );
    }
    let mut targets = Vec::new();
    for word in first.split(',') {
        let kinds = if word == "all" { all() } else { vec![kind(word)?] };
        for info in kinds {
            if names.is_empty() {
                targets.push(Target { info, name: None });
            } else {
                targets.extend(names.iter().map(|name| Target { info, name: Some(name) }));
            }
        }
    }
    Ok(targets)
}

/// Reads `KIND/NAME`.
pub(crate) fn one(argument: &str) -> Result<Target<'_>> {
    match argument.split_once('/') {
        Some((word, name)) if !name.is_empty() && !name.contains('/') => {
            Ok(Target { info: kind(word)?, name: Some(name) })
        }
        _ => bail!("arguments in the form KIND/NAME must have one kind and one name, as pod/web; found {argument:?}"),
    }
}

/// The kind that a word means.
pub(crate) fn kind(word: &str) -> Result<&'static KindInfo> {
    registry::by_argument(word).ok_or_else(|| {
        let known: Vec<_> = registry::all().iter().map(|info| info.plural).collect();
        anyhow!("the region has no resource type {word:?}; it has {}", known.join(", "))
    })
}

fn all() -> Vec<&'static KindInfo> {
    ALL.iter().filter_map(|kind| registry::all().iter().find(|info| info.kind == *kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Vec<(String, Option<String>)>> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        Ok(parse(&words)?
            .into_iter()
            .map(|target| (target.info.plural.to_owned(), target.name.map(str::to_owned)))
            .collect())
    }

    #[test]
    fn kinds_and_names_are_told_apart() {
        let named = |kind: &str, name: &str| (kind.to_owned(), Some(name.to_owned()));
        assert_eq!(read("po").expect("pods"), [("pods".to_owned(), None)]);
        assert_eq!(read("pod a b").expect("two"), [named("pods", "a"), named("pods", "b")]);
        assert_eq!(read("pod/a install/b").expect("two"), [named("pods", "a"), named("installs", "b")]);
        assert_eq!(read("pods,routes").expect("two").len(), 2);
        assert_eq!(read("all").expect("five").len(), ALL.len());
        for bad in ["jobs", "pod/", "pod/a/b", "pod a/b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
