//! `trace`: how a request for a name travels from here, step by step, and which step is broken.
//!
//! # Guarantees
//! Every wait is bounded. A step that is broken does not end the others, where they can be looked at without it. Nothing is changed but that a
//! tunnel to the device is opened, and the app is asked for its first page (`GET /`).

mod app;
mod device;
mod dns;
mod external;
mod gateway;
mod name;
mod query;
mod report;
mod tls;

use std::{future::Future, time::Duration};

use anyhow::Result;
use hearth_proto::v1::InfoResponse;
use serde_json::json;

use self::{
    name::Subject,
    report::{Step, Verdict},
};
use crate::{
    args::{Output, Trace},
    context::Context,
    output::{self, Told},
};

/// How long the region may take to answer one question.
const REGION: Duration = Duration::from_secs(10);

/// Runs the verb: fails unless every step is fine.
pub(crate) async fn run(context: &Context, args: &Trace) -> Result<()> {
    let wanted = name::read(&args.name)?;
    let info = within(REGION, context.client()?.info()).await;
    let (info, unreachable) = match info {
        Some(Ok(info)) => (info, None),
        Some(Err(status)) => (InfoResponse::default(), Some(status.message)),
        None => (InfoResponse::default(), Some(format!("no answer within {} s", REGION.as_secs()))),
    };
    let (subject, named) = match &unreachable {
        None => name::look(context, &wanted, &info).await,
        Some(why) => name::without_region(&wanted, why),
    };
    let mut steps = vec![named];
    match &subject {
        Some(subject) => follow(context, subject, &info, &mut steps).await,
        None => steps.extend(report::rest("it is not known which name is meant")),
    }
    let fine = steps.iter().all(|step| step.verdict == Verdict::Ok);
    let hostname = subject.as_ref().map_or(args.name.as_str(), |subject| subject.hostname.as_str());
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        let value = json!({"name": hostname, "ok": fine, "summary": report::summary(&steps), "steps": steps});
        output::documents(&[value], false, output)?;
    } else {
        output::lines(&report::text(hostname, &steps));
    }
    if fine { Ok(()) } else { Err(Told.into()) }
}

/// The steps behind the name.
async fn follow(context: &Context, subject: &Subject, info: &InfoResponse, steps: &mut Vec<Step>) {
    let ((addresses, told), external) = tokio::join!(dns::look(subject, info), external::look(context, subject));
    steps.push(external::explain(told, external.as_ref(), &addresses));
    let (reached, told) = gateway::look(subject, info, &addresses, external.as_ref()).await;
    steps.push(told);
    let told = device::look(context, subject).await;
    let has_device = told.verdict == Verdict::Ok;
    steps.push(told);
    let answer = if let Some(port) = subject.port {
        steps.extend(tls::carried(port));
        tls::Answer::None
    } else {
        let (answer, told) = tls::look(context, subject, reached, has_device).await;
        steps.extend(told);
        answer
    };
    steps.push(app::look(context, subject, &answer).await);
}

/// What something comes to within a time.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}
