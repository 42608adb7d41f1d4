//! When a container is asked how it is, and what its answers mean (the kubelet's `prober/worker.go`).

use std::time::Duration;

use hearth_types::Timestamp;

use crate::{
    Answer, Command, ContainerView, EventType, Failure, PodMachine, ProbeKind, ProbeView,
    machine::{Intent, event},
};

/// The probes of one attempt of a container. None of this outlives the agent: it asks anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    startup: Asked,
    liveness: Asked,
    readiness: Asked,
}

/// One probe of an attempt.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// When it asks next; `None` before it was thought of.
    next: Option<Timestamp>,
    under_way: bool,
    /// The answer before, and how often in a row it came.
    last: Option<(bool, u32)>,
    /// What people heard of it last.
    told: Option<String>,
}

impl Asked {
    /// Whether it is time to ask.
    fn is_due(&self, view: &ProbeView, now: Timestamp) -> bool {
        // A clock that was set back must not make a short wait a long one.
        let longest = view.period.max(view.initial_delay);
        !self.under_way && self.next.is_some_and(|next| next <= now || next.since(now) > longest)
    }

    /// Notes an answer; says whether it came often enough to count.
    fn count(&mut self, good: bool, view: &ProbeView) -> bool {
        let times = match self.last {
            Some((before, times)) if before == good => times.saturating_add(1),
            _ => 1,
        };
        self.last = Some((good, times));
        times >= if good { view.success_threshold } else { view.failure_threshold }
    }

    /// Whether people have not heard this yet.
    fn is_news(&mut self, text: &str) -> bool {
        let news = self.told.as_deref() != Some(text);
        self.told = Some(text.to_owned());
        news
    }
}

impl Probes {
    fn of(&self, kind: ProbeKind) -> &Asked {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Liveness => &self.liveness,
            ProbeKind::Readiness => &self.readiness,
        }
    }

    fn of_mut(&mut self, kind: ProbeKind) -> &mut Asked {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }
}

impl PodMachine {
    /// The probes that ask now or later: of containers that run.
    fn asking(&self) -> impl Iterator<Item = (&ContainerView, ProbeKind, &ProbeView, Timestamp)> {
        self.spec.containers.iter().flat_map(move |view| {
            ProbeKind::ALL.into_iter().filter_map(move |kind| {
                let (record, actions) = (self.record.containers.get(&view.name)?, self.containers.get(&view.name)?);
                let started_at = record.running_since().filter(|_| record.is_up())?;
                // The startup probe until it has started, the others from then on.
                let turn = (kind == ProbeKind::Startup) != record.started;
                // What is to end anyway is not killed for being ill.
                let ends = self.intent != Intent::Run || actions.stopping.is_some();
                let asks = turn && (kind == ProbeKind::Readiness || !ends);
                view.probe(kind).filter(|_| asks).map(|probe| (view, kind, probe, started_at))
            })
        })
    }

    /// Asks what is due.
    pub(crate) fn probe(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let asking: Vec<_> =
            self.asking().map(|(view, kind, probe, since)| (view.name.clone(), kind, *probe, since)).collect();
        for (name, kind, view, started_at) in asking {
            let Some(one) = self.containers.get_mut(&name) else { continue };
            let adopted = one.adopted;
            let asked = one.probes.of_mut(kind);
            asked.next.get_or_insert_with(|| first(&[&self.spec.uid, &name], &view, started_at, adopted, now));
            if asked.is_due(&view, now) {
                asked.under_way = true;
                asked.next = Some(now.plus(view.period));
                let attempt = self.record.containers[&name].attempt;
                out.push(Command::Probe { container: name, attempt, kind });
            }
        }
    }

    /// When there is something to ask next.
    pub(crate) fn next_probe(&self) -> Option<Timestamp> {
        let waiting = self.asking().filter_map(|(view, kind, ..)| {
            let asked = self.containers.get(&view.name)?.probes.of(kind);
            asked.next.filter(|_| !asked.under_way)
        });
        waiting.min()
    }

    /// What a container answered.
    pub(crate) fn probed(
        &mut self,
        name: &str,
        attempt: u32,
        kind: ProbeKind,
        answer: Answer,
        now: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let (Some(one), Some(record)) = (self.containers.get_mut(name), self.record.containers.get_mut(name)) else {
            return;
        };
        let Some(container) = self.spec.container(name) else { return };
        let Some(view) = container.probe(kind).filter(|_| record.attempt == attempt && record.is_up()) else { return };
        let asked = one.probes.of_mut(kind);
        if !std::mem::take(&mut asked.under_way) {
            return;
        }
        let what = kind.as_str();
        let (good, text) = match answer {
            Answer::Good => (true, None),
            Answer::Warning(text) => (true, Some(("ProbeWarning", format!("{what} probe warning: {text}")))),
            Answer::Bad(text) => (false, Some(("Unhealthy", format!("{what} probe failed: {text}")))),
            Answer::Unknown(text) => {
                let text = format!("{what} probe errored and resulted in unknown state: {text}");
                if asked.is_news(&text) {
                    event(out, EventType::Warning, "Unhealthy", text);
                }
                return;
            }
        };
        match text {
            Some((reason, text)) if asked.is_news(&text) => event(out, EventType::Warning, reason, text),
            Some(_) => {}
            None => asked.told = None,
        }
        if !asked.count(good, view) {
            return;
        }
        match (kind, good) {
            (ProbeKind::Readiness, ready) => record.ready = ready,
            (ProbeKind::Startup, true) => record.started = true,
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                let grace = view.grace.unwrap_or(self.spec.grace);
                let reason = format!("Container {name} failed {} probe", what.to_lowercase());
                self.restart(name, grace, &reason, now, out);
            }
        }
    }

    /// What was to be done at the start of a container was done, or not.
    pub(crate) fn post_started(
        &mut self,
        name: &str,
        attempt: u32,
        result: Result<(), Failure>,
        now: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let (Some(one), Some(record)) = (self.containers.get_mut(name), self.record.containers.get_mut(name)) else {
            return;
        };
        if record.attempt != attempt || record.running_since().is_none() || !std::mem::take(&mut one.post_start) {
            return;
        }
        match result {
            Ok(()) => record.post_start_due = false,
            Err(failure) => {
                event(out, EventType::Warning, &failure.reason, failure.message);
                let grace = self.spec.grace;
                self.restart(name, grace, "FailedPostStartHook", now, out);
            }
        }
    }
}

/// When a probe asks first. Containers that an agent took over all began long ago: it does not ask all of them at once.
fn first(who: &[&str], view: &ProbeView, started_at: Timestamp, adopted: bool, now: Timestamp) -> Timestamp {
    // A clock that was set back must not make a short wait a long one.
    let earliest = started_at.plus(view.initial_delay).min(now.plus(view.initial_delay)).max(now);
    if !adopted {
        return earliest;
    }
    let hash = who
        .iter()
        .flat_map(|part| part.bytes())
        .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let share = Duration::from_millis(u64::from(hash) % (view.period.as_millis() as u64).max(1));
    earliest.max(now.plus(share))
}
