//! `top`: what pods and devices use now, as kubectl prints it. Each device is asked when the verb runs, and looks for a second.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures_util::{StreamExt as _, stream};
use hearth_proto::v1::{ContainerStats, StatsResponse};
use hearth_types::{Object, Status, registry::KindInfo};

use crate::{
    args::{Resource, TopNode, TopPod},
    context::{Context, Selection, refusal},
    output::{self, Told, table},
    target,
};

/// Devices that are asked at the same time.
const AT_ONCE: usize = 16;

/// What something uses; none where it cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    cpu_nanocores: Option<u64>,
    memory_bytes: Option<u64>,
}

impl Used {
    fn of(stats: &ContainerStats) -> Self {
        Self { cpu_nanocores: stats.cpu_nanocores, memory_bytes: stats.memory_working_set_bytes }
    }

    /// A sum lacks what one of its parts lacks.
    fn and(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        Self {
            cpu_nanocores: sum(self.cpu_nanocores, other.cpu_nanocores),
            memory_bytes: sum(self.memory_bytes, other.memory_bytes),
        }
    }

    fn amount(self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Cpu => self.cpu_nanocores,
            Resource::Memory => self.memory_bytes,
        }
    }

    /// As `12m` and `34Mi`: kubectl rounds thousandths up and mebibytes down.
    fn cells(self) -> [String; 2] {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "<unknown>".into());
        [
            or_unknown(self.cpu_nanocores.map(|nanos| format!("{}m", nanos.div_ceil(1_000_000)))),
            or_unknown(self.memory_bytes.map(|bytes| format!("{}Mi", bytes >> 20))),
        ]
    }
}

/// A line: what names it, and what it uses.
#[derive(Debug)]
struct Line {
    names: Vec<String>,
    used: Used,
    more: Option<[String; 2]>,
}

/// Sorted by name, or the most of something first.
fn sort(lines: &mut [Line], by: Option<Resource>) {
    lines.sort_by(|a, b| a.names.cmp(&b.names));
    if let Some(resource) = by {
        lines.sort_by_key(|line| std::cmp::Reverse(line.used.amount(resource)));
    }
}

/// Asks devices; those that do not answer are told with the reason.
async fn ask(
    context: &Context,
    devices: BTreeSet<String>,
    namespace: &str,
) -> Result<BTreeMap<String, Result<StatsResponse, Status>>> {
    let client = context.client()?;
    let asked = stream::iter(devices).map(|device| async {
        let answer = client.stats(&device, namespace).await;
        (device, answer)
    });
    Ok(asked.buffer_unordered(AT_ONCE).collect().await)
}

fn told_failures(answers: &BTreeMap<String, Result<StatsResponse, Status>>) -> usize {
    let failed = answers.values().filter_map(|answer| answer.as_ref().err());
    failed.map(|status| output::note(&format!("error: {:#}", refusal(status)))).count()
}

fn text<'a>(object: &'a serde_json::Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// The object that is named, or all that are selected.
async fn chosen(
    context: &Context,
    info: &'static KindInfo,
    name: Option<&str>,
    labels: Option<&str>,
    all_namespaces: bool,
) -> Result<Vec<Object>> {
    if let Some(name) = name {
        return Ok(vec![context.get(info, name).await?]);
    }
    let selection = Selection { all_namespaces, labels: labels.unwrap_or_default(), ..Selection::default() };
    Ok(context.list(info, &selection).await?.0)
}

/// `top pod`.
pub(crate) async fn pods(context: &Context, args: &TopPod) -> Result<()> {
    let info = target::kind("pods")?;
    let pods = chosen(context, info, args.name.as_deref(), args.selector.as_deref(), args.all_namespaces).await?;
    if pods.is_empty() {
        output::note(&if args.all_namespaces {
            "No resources found".to_owned()
        } else {
            format!("No resources found in {} namespace.", context.namespace())
        });
        return Ok(());
    }
    let running =
        pods.iter().map(|pod| (pod, pod.value())).filter(|(_, value)| text(value, "/status/phase") == "Running");
    let running: Vec<_> = running.collect();
    let devices = running.iter().map(|(_, value)| text(value, "/spec/nodeName").to_owned()).collect();
    let namespace = if args.all_namespaces { "" } else { context.namespace() };
    let answers = ask(context, devices, namespace).await?;
    let failures = told_failures(&answers);
    // Of a pod its own device is believed, and no other.
    let stats: BTreeMap<(&str, &str), &[ContainerStats]> = answers
        .iter()
        .filter_map(|(device, answer)| Some((device, answer.as_ref().ok()?)))
        .flat_map(|(device, answer)| answer.pods.iter().map(move |pod| (device, pod)))
        .map(|(device, pod)| ((device.as_str(), pod.uid.as_str()), pod.containers.as_slice()))
        .collect();
    let mut lines = Vec::new();
    for (pod, value) in &running {
        let device = text(value, "/spec/nodeName");
        let Some(containers) = stats.get(&(device, pod.uid().as_str())) else {
            if answers.get(device).is_some_and(Result::is_ok) {
                output::note(&format!("Metrics not available for pod {}/{}", pod.namespace(), pod.name()));
            }
            continue;
        };
        // Between two attempts nothing of it runs.
        if containers.is_empty() {
            continue;
        }
        let name = || {
            let namespace = args.all_namespaces.then(|| pod.namespace().to_owned());
            namespace.into_iter().chain([pod.name().to_owned()])
        };
        if args.containers {
            let line = |one: &ContainerStats| Line {
                names: name().chain([one.name.clone()]).collect(),
                used: Used::of(one),
                more: None,
            };
            lines.extend(containers.iter().map(line));
        } else {
            let zero = Used { cpu_nanocores: Some(0), memory_bytes: Some(0) };
            let used = containers.iter().map(Used::of).fold(zero, Used::and);
            lines.push(Line { names: name().collect(), used, more: None });
        }
    }
    let mut headings = if args.all_namespaces { vec!["NAMESPACE"] } else { Vec::new() };
    headings.extend(if args.containers { vec!["POD", "NAME"] } else { vec!["NAME"] });
    headings.extend(["CPU(cores)", "MEMORY(bytes)"]);
    sort(&mut lines, args.sort_by);
    print(&headings, args.no_headers, &lines);
    if failures > 0 { Err(Told.into()) } else { Ok(()) }
}

/// `top node`.
pub(crate) async fn nodes(context: &Context, args: &TopNode) -> Result<()> {
    let info = target::kind("nodes")?;
    let nodes = chosen(context, info, args.name.as_deref(), args.selector.as_deref(), false).await?;
    if nodes.is_empty() {
        output::note("No resources found");
        return Ok(());
    }
    let names = nodes.iter().map(|node| node.name().to_owned()).collect();
    // No pod is in a namespace of this name: the machine alone is asked about.
    let answers = ask(context, names, "-").await?;
    let failures = told_failures(&answers);
    let line = |(name, answer): (&String, &Result<StatsResponse, Status>)| {
        let device = answer.as_ref().ok()?.device.as_ref()?;
        let used =
            Used { cpu_nanocores: Some(device.cpu_nanocores), memory_bytes: Some(device.memory_working_set_bytes) };
        let cpu = percent(device.cpu_nanocores, device.cpu_millis_total.saturating_mul(1_000_000));
        let memory = percent(device.memory_working_set_bytes, device.memory_bytes_total);
        Some(Line { names: vec![name.clone()], used, more: Some([cpu, memory]) })
    };
    let mut lines: Vec<_> = answers.iter().filter_map(line).collect();
    sort(&mut lines, args.sort_by);
    print(&["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"], args.no_headers, &lines);
    if failures > 0 { Err(Told.into()) } else { Ok(()) }
}

fn percent(part: u64, whole: u64) -> String {
    match u128::from(whole) {
        0 => "<unknown>".into(),
        whole => format!("{}%", u128::from(part) * 100 / whole),
    }
}

fn print(headings: &[&str], no_headers: bool, lines: &[Line]) {
    let headings = (!no_headers).then(|| headings.iter().map(ToString::to_string).collect::<Vec<_>>());
    let rows = lines.iter().map(|line| {
        let [cpu, memory] = line.used.cells();
        let numbers = match line.more.clone() {
            Some([cpu_share, memory_share]) => vec![cpu, cpu_share, memory, memory_share],
            None => vec![cpu, memory],
        };
        line.names.iter().map(|name| table::one_line(name)).chain(numbers).collect()
    });
    output::lines(&table::layout(&headings.into_iter().chain(rows).collect::<Vec<_>>()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu: u64, memory: u64) -> Used {
        Used { cpu_nanocores: Some(cpu), memory_bytes: Some(memory) }
    }

    #[test]
    fn amounts_are_told_as_kubectl_does() {
        assert_eq!(used(0, 0).cells(), ["0m", "0Mi"]);
        assert_eq!(used(1, (3 << 20) - 1).cells(), ["1m", "2Mi"]);
        assert_eq!(used(1_500_000_000, 3 << 30).cells(), ["1500m", "3072Mi"]);
        assert_eq!(used(5, 7).and(used(6, 8)), used(11, 15));
        assert_eq!(used(5, 7).and(Used::default()).cells(), ["<unknown>", "<unknown>"]);
        assert_eq!((percent(500, 2000), percent(1, 0)), ("25%".to_owned(), "<unknown>".to_owned()));
    }

    #[test]
    fn lines_are_in_the_order_of_names_or_of_use() {
        let lines = || -> Vec<Line> {
            let all = [("b", used(1, 30)), ("a", used(2, 20)), ("c", used(2, 10))];
            all.into_iter().map(|(name, used)| Line { names: vec![name.into()], used, more: None }).collect()
        };
        for (by, expected) in [(None, "abc"), (Some(Resource::Cpu), "acb"), (Some(Resource::Memory), "bac")] {
            let mut lines = lines();
            sort(&mut lines, by);
            assert_eq!(lines.iter().map(|line| line.names[0].as_str()).collect::<String>(), expected, "{by:?}");
        }
    }
}
