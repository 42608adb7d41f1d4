//! What is told of each step.

use serde::Serialize;
use serde_json::Value;

use crate::output::table::one_line;

/// The steps of a request, in its order: a word for programs, and what it is about.
const STEPS: [(&str, &str); 7] = [
    ("name", "the name"),
    ("dns", "DNS"),
    ("gateway", "the gateway"),
    ("device", "the device"),
    ("certificate", "the certificate"),
    ("ingress", "the ingress"),
    ("app", "the app"),
];

/// How a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Broken,
    /// It could not be looked at.
    Unknown,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Step {
    #[serde(rename = "step")]
    pub(super) name: &'static str,
    #[serde(rename = "status")]
    pub(super) verdict: Verdict,
    /// What was found, in a sentence.
    pub(super) says: String,
    /// More of it, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) details: Vec<String>,
    /// What a person can do about it.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
    /// The same for programs.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) facts: Value,
}

impl Step {
    fn new(name: &'static str, verdict: Verdict, says: impl Into<String>) -> Self {
        Self { name, verdict, says: says.into(), details: Vec::new(), advice: None, facts: Value::Null }
    }

    pub(super) fn ok(step: &'static str, says: impl Into<String>) -> Self {
        Self::new(step, Verdict::Ok, says)
    }

    pub(super) fn broken(step: &'static str, says: impl Into<String>) -> Self {
        Self::new(step, Verdict::Broken, says)
    }

    pub(super) fn unknown(step: &'static str, says: impl Into<String>) -> Self {
        Self::new(step, Verdict::Unknown, says)
    }

    pub(super) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub(super) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    pub(super) fn facts(mut self, facts: Value) -> Self {
        self.facts = facts;
        self
    }
}

/// The steps after the first one, which cannot be looked at.
pub(super) fn rest(why: &str) -> Vec<Step> {
    STEPS[1..].iter().map(|(step, _)| Step::unknown(step, why)).collect()
}

/// The whole in a sentence: the first step that is broken is what keeps a request from arriving.
pub(super) fn summary(steps: &[Step]) -> String {
    let first = |verdict| steps.iter().find(|step| step.verdict == verdict);
    if let Some(broken) = first(Verdict::Broken) {
        return format!("a request does not arrive: {}: {}", title(broken.name), broken.says);
    }
    match first(Verdict::Unknown) {
        Some(unknown) => {
            format!(
                "nothing was found broken, and not all could be looked at: {}: {}",
                title(unknown.name),
                unknown.says
            )
        }
        None => "a request arrives: every step is fine".to_owned(),
    }
}

fn title(step: &str) -> &'static str {
    STEPS.iter().find(|(name, _)| *name == step).map_or("a step", |(_, title)| title)
}

/// The steps as a person reads them.
pub(super) fn text(hostname: &str, steps: &[Step]) -> Vec<String> {
    let mut lines = vec![one_line(hostname)];
    for (number, step) in (1..).zip(steps) {
        let verdict = match step.verdict {
            Verdict::Ok => "ok",
            Verdict::Broken => "BROKEN",
            Verdict::Unknown => "unknown",
        };
        lines.push(format!("{number} {verdict:<7}  {:<15}  {}", title(step.name), one_line(&step.says)));
        let indent = " ".repeat(28);
        lines.extend(step.details.iter().map(|line| format!("{indent}{}", one_line(line))));
        lines.extend(step.advice.iter().map(|line| format!("{indent}-> {}", one_line(line))));
    }
    lines.push(one_line(&summary(steps)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_broken_step_is_what_is_wrong() {
        use Verdict::{Broken, Ok, Unknown};
        let steps = |verdicts: [Verdict; 7]| -> Vec<Step> {
            STEPS
                .iter()
                .zip(verdicts)
                .map(|((step, _), verdict)| Step::new(step, verdict, format!("so is {step}")))
                .collect()
        };
        assert_eq!(summary(&steps([Ok; 7])), "a request arrives: every step is fine");
        assert_eq!(
            summary(&steps([Ok, Ok, Unknown, Broken, Unknown, Unknown, Broken])),
            "a request does not arrive: the device: so is device"
        );
        assert!(summary(&steps([Ok, Unknown, Ok, Ok, Ok, Ok, Ok])).contains("not all could be looked at: DNS"));
    }

    #[test]
    fn what_others_wrote_stays_on_its_line() {
        let step = Step::broken("app", "it says \u{1b}[2J\nok").detail("a\nb").advise("do\nthis");
        let lines = text("a.test", &[step]);
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| !line.contains(['\n', '\u{1b}'])), "{lines:?}");
    }
}
