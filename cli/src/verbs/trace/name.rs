//! The name: what leads there, and whose it is.

use anyhow::{Result, bail};
use hearth_proto::v1::InfoResponse;
use hearth_types::{Object, condition, names, selector::text_at};
use serde_json::{Value, json};

use super::report::Step;
use crate::{
    context::{Context, Selection},
    target,
};

const STEP: &str = "name";
/// Names that are told to who mistyped one.
const HINTS: usize = 8;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A hostname.
    Host(String),
    /// The name of an Install or a Route in the namespace.
    Object(String),
    /// `install/NAME` or `route/NAME`.
    OfKind(&'static str, String),
}

/// What the request is for.
#[derive(Debug, Default)]
pub(super) struct Subject {
    pub(super) hostname: String,
    /// Of the Route and the Install.
    pub(super) namespace: String,
    pub(super) route: Option<Value>,
    pub(super) install: Option<Value>,
    /// The public port, where the Route has one of its own.
    pub(super) port: Option<u16>,
    /// The zone; empty where the region cannot be asked.
    pub(super) zone: String,
}

impl Subject {
    /// The device that serves the name, or did last.
    pub(super) fn device(&self) -> Option<String> {
        let of = |object: &Option<Value>, path: &str| {
            let text = object.as_ref()?.pointer(path)?.as_str()?;
            (!text.is_empty()).then(|| text.to_owned())
        };
        of(&self.route, "/status/endpoints/0/device").or_else(|| of(&self.install, "/status/device"))
    }

    /// `install/notes -n alice`, for commands that are proposed.
    pub(super) fn command(&self) -> String {
        match (&self.install, &self.route) {
            (Some(install), _) => format!("install/{} -n {}", text_at(install, "metadata.name"), self.namespace),
            (None, Some(route)) => format!("route/{} -n {}", text_at(route, "metadata.name"), self.namespace),
            (None, None) => format!("-n {}", self.namespace),
        }
    }
}

/// Reads the argument: a hostname, a URL, a name, or KIND/NAME.
pub(super) fn read(argument: &str) -> Result<Wanted> {
    let lower = argument.to_ascii_lowercase();
    let url = lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://"));
    if let Some(rest) = url {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return host(authority.split(':').next().unwrap_or_default(), argument);
    }
    if argument.contains('/') {
        let target = target::one(argument)?;
        let name = target.name.unwrap_or_default().to_owned();
        return match target.info.kind {
            kind @ ("Install" | "Route") => Ok(Wanted::OfKind(kind, name)),
            other => bail!("no request is made to a {other}; name a hostname, an Install or a Route"),
        };
    }
    if argument.contains('.') {
        return host(lower.split(':').next().unwrap_or_default(), argument);
    }
    match names::dns_label(argument) {
        Ok(()) => Ok(Wanted::Object(argument.to_owned())),
        Err(why) => bail!("{argument:?} is no hostname, and no name of an Install or Route: {why}"),
    }
}

fn host(text: &str, argument: &str) -> Result<Wanted> {
    let text = text.strip_suffix('.').unwrap_or(text);
    match names::dns_subdomain(text) {
        Ok(()) => Ok(Wanted::Host(text.to_owned())),
        Err(why) => bail!("{argument:?} is no hostname: {why}"),
    }
}

/// What can be looked at without the region.
pub(super) fn without_region(wanted: &Wanted, why: &str) -> (Option<Subject>, Step) {
    let step = Step::unknown(STEP, format!("the region cannot be asked who has the name: {why}"))
        .advise("see that a server of the region runs and is reached from here: `hearth version`");
    match wanted {
        Wanted::Host(hostname) => (Some(Subject { hostname: hostname.clone(), ..Subject::default() }), step),
        Wanted::Object(_) | Wanted::OfKind(..) => (None, step),
    }
}

/// Asks the region.
pub(super) async fn look(context: &Context, wanted: &Wanted, info: &InfoResponse) -> (Option<Subject>, Step) {
    match super::within(super::REGION, find(context, wanted, info)).await {
        Some(Ok(found)) => found,
        Some(Err(error)) => without_region(wanted, &format!("{error:#}")),
        None => without_region(wanted, "it does not answer in time"),
    }
}

async fn find(context: &Context, wanted: &Wanted, info: &InfoResponse) -> Result<(Option<Subject>, Step)> {
    let zone = info.zone.clone();
    match wanted {
        Wanted::Host(hostname) => {
            let subject = Subject { hostname: hostname.clone(), zone, ..Subject::default() };
            of_host(context, subject).await.map(|(subject, step)| (Some(subject), step))
        }
        Wanted::OfKind("Route", name) => {
            of_object(context, None, one(context, "routes", name).await?, name, zone).await
        }
        Wanted::OfKind(_, name) => of_object(context, one(context, "installs", name).await?, None, name, zone).await,
        Wanted::Object(name) => {
            let install = one(context, "installs", name).await?;
            let route = if install.is_none() { one(context, "routes", name).await? } else { None };
            of_object(context, install, route, name, zone).await
        }
    }
}

async fn one(context: &Context, kind: &str, name: &str) -> Result<Option<Object>> {
    context.find(&context.key(target::kind(kind)?, name)).await
}

/// An Install or a Route that was named.
async fn of_object(
    context: &Context,
    install: Option<Object>,
    route: Option<Object>,
    name: &str,
    zone: String,
) -> Result<(Option<Subject>, Step)> {
    if let Some(route) = route {
        let hostname = text_at(&route.value(), "spec.hostname");
        return of_host(context, Subject { hostname, zone, ..Subject::default() })
            .await
            .map(|(one, step)| (Some(one), step));
    }
    let namespace = context.namespace();
    let Some(install) = install else {
        let there = installs(context, namespace).await?;
        let step = Step::broken(STEP, format!("there is no Install or Route {name:?} in namespace {namespace}"));
        return Ok((None, hint(step, namespace, &there)));
    };
    let value = install.value();
    let hostname = text_at(&value, "status.hostname");
    if hostname.is_empty() {
        let step = Step::broken(STEP, format!("Install {namespace}/{name} has no hostname{}", because(&value))).advise(
            format!("an App without `ingress` answers to nobody; see `hearth describe install {name} -n {namespace}`"),
        );
        return Ok((None, step));
    }
    of_host(context, Subject { hostname, zone, ..Subject::default() })
        .await
        .map(|(subject, step)| (Some(subject), step))
}

/// Why an Install is not ready, with a colon before it.
fn because(install: &Value) -> String {
    match condition::get(install, "Ready").filter(|ready| !ready.message.is_empty()) {
        Some(ready) => format!(": {}: {}", ready.reason, ready.message),
        None => String::new(),
    }
}

async fn of_host(context: &Context, mut subject: Subject) -> Result<(Subject, Step)> {
    let hostname = subject.hostname.clone();
    let fields = format!("spec.hostname={hostname}");
    let everywhere = Selection { all_namespaces: true, labels: "", fields: &fields };
    let (routes, _) = context.list_in(target::kind("routes")?, "", &everywhere).await?;
    let mut routes: Vec<Value> = routes.iter().map(Object::value).collect();
    // Of HTTPS first, then the oldest, which has the name.
    routes.sort_by_cached_key(|route| {
        (
            route["spec"]["protocol"] == "TCP",
            text_at(route, "metadata.creationTimestamp"),
            text_at(route, "metadata.name"),
        )
    });
    let below = hostname.strip_suffix(subject.zone.as_str()).and_then(|rest| rest.strip_suffix('.'));
    let Some(route) = routes.into_iter().next() else {
        return no_route(context, subject, below).await;
    };
    subject.namespace = text_at(&route, "metadata.namespace");
    subject.port = (route["spec"]["protocol"] == "TCP")
        .then(|| route["spec"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()))
        .flatten();
    let owner = route.pointer("/metadata/ownerReferences/0").filter(|owner| owner["kind"] == "Install");
    if let Some(owner) = owner {
        let key = context.key(target::kind("installs")?, &text_at(owner, "name"));
        let key = hearth_types::ObjectKey { namespace: subject.namespace.as_str().into(), ..key };
        subject.install = context.find(&key).await?.map(|install| install.value());
    }
    let namespace = subject.namespace.clone();
    let by = match &subject.install {
        Some(install) => {
            let app = text_at(install, "spec.app");
            format!("Install {namespace}/{} of App {app}", text_at(install, "metadata.name"))
        }
        None => format!("Route {namespace}/{}", text_at(&route, "metadata.name")),
    };
    let public = subject.port.map(|port| format!(", by TCP at port {port}")).unwrap_or_default();
    let step = Step::ok(STEP, format!("it leads to {by}{public}; its owner is {namespace}"))
        .facts(json!({"hostname": hostname, "owner": namespace, "route": text_at(&route, "metadata.name")}));
    subject.route = Some(route);
    Ok((subject, step))
}

/// Nothing leads to the name.
async fn no_route(context: &Context, mut subject: Subject, below: Option<&str>) -> Result<(Subject, Step)> {
    let hostname = subject.hostname.clone();
    let Some(labels) = below else {
        let step =
            Step::broken(STEP, format!("no Route has this name, and it is not of this region's zone {}", subject.zone))
                .advise(format!("names of this region are APP.OWNER.{}", subject.zone));
        return Ok((subject, step));
    };
    let (name, namespace) = labels.rsplit_once('.').unwrap_or(("", labels));
    subject.namespace = namespace.to_owned();
    let there = installs(context, namespace).await?;
    // An App without a door, or an Install that was not looked at yet.
    if let Some(install) = there.iter().find(|install| text_at(install, "metadata.name") == name) {
        let step = Step::broken(STEP, format!("Install {namespace}/{name} has no Route{}", because(install)))
            .advise(format!("see `hearth describe install {name} -n {namespace}`"));
        subject.install = Some(install.clone());
        return Ok((subject, step));
    }
    let step = Step::broken(STEP, format!("nobody has the name {hostname}: there is no Route for it"));
    Ok((subject, hint(step, namespace, &there)))
}

async fn installs(context: &Context, namespace: &str) -> Result<Vec<Value>> {
    let (installs, _) = context.list_in(target::kind("installs")?, namespace, &Selection::default()).await?;
    Ok(installs.iter().map(Object::value).collect())
}

fn hint(step: Step, namespace: &str, there: &[Value]) -> Step {
    let names: Vec<_> = there.iter().take(HINTS).map(|install| text_at(install, "metadata.name")).collect();
    let more = if there.len() > HINTS { ", ..." } else { "" };
    if names.is_empty() {
        return step.advise(format!("nothing is installed in namespace {namespace}; see `hearth get installs -A`"));
    }
    step.advise(format!("installed in namespace {namespace}: {}{more}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hostnames_urls_and_objects_are_told_apart() {
        let host = |text: &str| Wanted::Host(text.to_owned());
        for (text, wanted) in [
            ("notes", Wanted::Object("notes".into())),
            ("Notes.Alice.Example.Test", host("notes.alice.example.test")),
            ("notes.alice.example.test.", host("notes.alice.example.test")),
            ("notes.alice.example.test:8443", host("notes.alice.example.test")),
            ("https://notes.alice.example.test:8443/a?b", host("notes.alice.example.test")),
            ("install/notes", Wanted::OfKind("Install", "notes".into())),
            ("route/notes", Wanted::OfKind("Route", "notes".into())),
        ] {
            assert_eq!(read(text).expect(text), wanted);
        }
        for bad in ["", "a b", "https://", "a..b", "pod/notes", "install/", "-x", "no_tes.alice"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
