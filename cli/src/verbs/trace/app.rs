//! The app: what runs, and why it does not.

use anyhow::Result;
use hearth_types::{
    Object, ObjectKey, Timestamp,
    condition::{self, Truth},
    kinds::labels,
    selector::text_at,
    time::human_duration,
};
use serde_json::{Value, json};

use super::{name::Subject, report::Step, tls::Answer, within};
use crate::{
    context::{Context, Selection, now},
    target,
    verbs::events,
};

const STEP: &str = "app";
/// Events that are told, and pods.
const MAX_EVENTS: usize = 3;
const MAX_PODS: usize = 8;

/// What is known of what runs.
#[derive(Debug, Default)]
struct Seen {
    pods: Vec<Value>,
    /// Warnings about the pods and the Install, the newest first.
    warnings: Vec<Value>,
}

/// Looks at what is behind the name.
pub(super) async fn look(context: &Context, subject: &Subject, answer: &Answer) -> Step {
    if subject.route.is_none() && subject.install.is_none() {
        return Step::unknown(STEP, "it is not known which app is meant");
    }
    let seen = match within(super::REGION, see(context, subject)).await {
        Some(Ok(seen)) => seen,
        Some(Err(error)) => return Step::unknown(STEP, format!("the region cannot be asked: {error:#}")),
        None => return Step::unknown(STEP, "the region does not answer in time"),
    };
    judge(subject, &seen, answer, now())
}

async fn see(context: &Context, subject: &Subject) -> Result<Seen> {
    let labels = match (&subject.install, &subject.route) {
        (Some(install), _) => format!("{}={}", labels::INSTALL, text_at(install, "metadata.name")),
        (None, route) => selector(route.as_ref()),
    };
    let selection = Selection { all_namespaces: false, labels: &labels, fields: "" };
    let (pods, _) = context.list_in(target::kind("pods")?, &subject.namespace, &selection).await?;
    let pods: Vec<Value> = pods.iter().map(Object::value).take(MAX_PODS).collect();
    let mut about: Vec<ObjectKey> = Vec::new();
    for (kind, object) in
        pods.iter().map(|pod| ("pods", pod)).chain(subject.install.iter().map(|one| ("installs", one)))
    {
        let key = context.key(target::kind(kind)?, &text_at(object, "metadata.name"));
        about.push(ObjectKey { namespace: subject.namespace.as_str().into(), ..key });
    }
    let mut warnings = Vec::new();
    for key in about {
        let fields = format!("involvedObject.kind={},involvedObject.name={},type=Warning", key.kind.kind, key.name);
        let selection = Selection { all_namespaces: false, labels: "", fields: &fields };
        let (found, _) = context.list_in(target::kind("events")?, &subject.namespace, &selection).await?;
        warnings.extend(events::sorted(&found));
    }
    warnings.sort_by_cached_key(|event| std::cmp::Reverse(text_at(event, "lastTimestamp")));
    Ok(Seen { pods, warnings })
}

/// The label selector of a Route's pods.
fn selector(route: Option<&Value>) -> String {
    let labels = route.and_then(|route| route.pointer("/spec/target/selector")).and_then(Value::as_object);
    let labels = labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    labels.collect::<Vec<_>>().join(",")
}

fn judge(subject: &Subject, seen: &Seen, answer: &Answer, now: Timestamp) -> Step {
    let ready = [&subject.install, &subject.route].into_iter().flatten().find_map(|one| condition::get(one, "Ready"));
    let why = ready.as_ref().map(|ready| format!("{}: {}", ready.reason, ready.message));
    let why = why.unwrap_or_else(|| "nothing is known of it yet".into());
    let is_ready = ready.as_ref().is_some_and(|ready| ready.status == Truth::True);
    let facts = json!({"reason": ready.as_ref().map(|ready| ready.reason.as_str()), "pods": seen.pods.len()});
    let what = match &subject.install {
        Some(install) => format!("App {}", text_at(install, "spec.app")),
        None => "it".to_owned(),
    };
    let step = match answer {
        Answer::App(status) if *status >= 500 => {
            Step::broken(STEP, format!("{what} runs, and answers GET / with {status}")).advise(logs(subject))
        }
        Answer::App(status) if is_ready => {
            Step::ok(STEP, format!("{what} is ready and answers GET / with {status}; {why}"))
        }
        // What is asked for now does not run; what was before does.
        Answer::App(status) => {
            Step::broken(STEP, format!("{what} answers GET / with {status}, and is not as it should be: {why}"))
                .advise(advice(subject, &why))
        }
        Answer::Outage { message, .. } => {
            let known = if is_ready { String::new() } else { format!(" ({why})") };
            Step::broken(STEP, format!("{message}{known}")).advise(advice(subject, &why))
        }
        Answer::None => match ready.as_ref().map(|ready| ready.status) {
            Some(Truth::True) if subject.port.is_some() => Step::ok(STEP, format!("{what} is ready; {why}")),
            Some(Truth::True) => {
                Step::unknown(STEP, format!("{what} was ready when it was seen last, and did not answer now; {why}"))
            }
            Some(Truth::False) => Step::broken(STEP, why.clone()).advise(advice(subject, &why)),
            Some(Truth::Unknown) | None => Step::unknown(STEP, why.clone()),
        },
    };
    let is_ok = step.verdict == super::Verdict::Ok;
    let info = hearth_types::registry::by_argument("pods");
    let pods = seen.pods.iter().filter(|_| !is_ok).filter_map(|pod| {
        let row = info?.row(pod, now);
        let device = text_at(pod, "spec.nodeName");
        let place = if device.is_empty() { "on no device".to_owned() } else { format!("on {device}") };
        Some(format!("pod {}: {}, {} restarts, {place}", row.first()?, row.get(2)?, row.get(3)?))
    });
    let warnings = seen.warnings.iter().filter(|_| !is_ok).take(MAX_EVENTS).map(|event| {
        let ago = Timestamp::parse(&text_at(event, "lastTimestamp")).map(|then| human_duration(now.since(then)));
        let (reason, message) = (text_at(event, "reason"), text_at(event, "message"));
        format!("{} ago: {reason}: {message}", ago.unwrap_or_else(|| "some time".into()))
    });
    pods.chain(warnings).fold(step, Step::detail).facts(facts)
}

fn logs(subject: &Subject) -> String {
    format!("see `hearth logs {}`", subject.command())
}

fn advice(subject: &Subject, why: &str) -> String {
    let command = subject.command();
    match why.split(':').next().unwrap_or_default() {
        "CrashLoopBackOff" | "Error" | "Crashed" | "OOMKilled" => format!("see `hearth logs {command} --previous`"),
        "Pending" => format!("see `hearth describe {command}` and `hearth get devices`"),
        "ImagePullBackOff" | "ErrImagePull" => {
            "see that the image's name is right and its registry is reached from the device".to_owned()
        }
        "Stopped" => "its owner stopped it; it starts again with spec.stopped: false of its Install".to_owned(),
        _ => format!("see `hearth describe {command}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::trace::report::Verdict;

    fn subject(ready: &str, reason: &str) -> Subject {
        let install = json!({"metadata": {"name": "notes"}, "spec": {"app": "notes"}, "status": {"conditions": [
            {"type": "Ready", "status": ready, "reason": reason, "message": "as it is"}]}});
        Subject { install: Some(install), namespace: "alice".into(), ..Subject::default() }
    }

    #[test]
    fn what_the_region_knows_and_what_was_answered_make_one_finding() {
        let outage = Answer::Outage { reason: "Crashed".into(), message: "This app crashed.".into() };
        for (ready, reason, answer, verdict, says) in [
            ("True", "Running", Answer::App(200), Verdict::Ok, "answers GET / with 200"),
            ("True", "Running", Answer::App(404), Verdict::Ok, "404"),
            ("True", "Running", Answer::App(500), Verdict::Broken, "500"),
            ("True", "Running", outage.clone(), Verdict::Broken, "This app crashed."),
            ("False", "CrashLoopBackOff", outage, Verdict::Broken, "CrashLoopBackOff"),
            ("False", "Pending", Answer::None, Verdict::Broken, "Pending: as it is"),
            ("Unknown", "DeviceSilent", Answer::None, Verdict::Unknown, "DeviceSilent"),
            ("True", "Running", Answer::None, Verdict::Unknown, "did not answer now"),
            ("False", "Updating", Answer::App(200), Verdict::Broken, "not as it should be"),
        ] {
            let step = judge(&subject(ready, reason), &Seen::default(), &answer, Timestamp(0));
            assert_eq!(step.verdict, verdict, "{ready} {reason} {answer:?}: {}", step.says);
            assert!(step.says.contains(says), "{}", step.says);
        }
    }
}
