//! What objects a command line names: `pods`, `pods,routes`, `pod a b`, `pod/a route/b`, `all`.

use anyhow::{Result, anyhow, bail};
use hearth_types::registry::{self, KindInfo};

/// What `all` stands for: what an owner runs.
const ALL: [&str; 6] = ["Install", "Deployment", "ReplicaSet", "Pod", "Service", "Route"];
/// Letters of a word that are compared at most: no kind has a longer name.
const MAX_WORD: usize = 40;

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
        let hint = suggestion(word)
            .map_or_else(|| format!("it has {}", known.join(", ")), |near| format!("did you mean {near:?}?"));
        anyhow!("the region doesn't have a resource type {word:?}; {hint}")
    })
}

/// The name of a kind that was probably meant: one or two letters off.
fn suggestion(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    let names = registry::all().iter().flat_map(|info| [info.plural.to_owned(), info.kind.to_lowercase()]);
    // A short word is near to everything.
    let allowed = if word.len() < 5 { 1 } else { 2 };
    names
        .map(|name| (distance(&name, &word), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// How many letters have to be put in, taken out or changed (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(MAX_WORD).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(MAX_WORD).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
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
        assert_eq!(read("all").expect("all").len(), ALL.len());
        for (wrong, near) in
            [("pds", "pods"), ("deploymnets", "deployments"), ("Instal", "install"), ("horizontalpodautoscalers", "")]
        {
            let error = read(wrong).expect_err(wrong).to_string();
            assert!(error.contains(&format!("resource type {wrong:?}")), "{error}");
            assert!(
                if near.is_empty() {
                    error.contains("it has")
                } else {
                    error.contains(&format!("did you mean {near:?}"))
                },
                "{error}"
            );
        }
        for bad in ["jobs", "pod/", "pod/a/b", "pod a/b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
