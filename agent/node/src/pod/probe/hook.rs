//! `lifecycle`: what is to be done when a container has started, and before it is asked to stop.

use std::{net::SocketAddr, time::Duration};

use hearth_pod::Failure;
use hearth_types::kinds::LifecycleHandler;
use tokio::time::{sleep, timeout};

use super::{Subject, exec, http, port_of};
use crate::container;

/// How long a request may take. A command may take as long as it likes: it ends with its container.
const HTTP_LIMIT: Duration = Duration::from_mins(5);

impl Subject {
    /// Does what is to be done when the container has started.
    pub(in crate::pod) async fn post_start(&self) -> Result<(), Failure> {
        let hooks = container::named(&self.site.pod, &self.container).and_then(|one| one.lifecycle.as_ref());
        let Some(hook) = hooks.and_then(|hooks| hooks.post_start.as_ref()) else { return Ok(()) };
        let failed = |why: String| Failure::new("FailedPostStartHook", format!("PostStartHook failed: {why}"));
        self.run(hook).await.map_err(failed)
    }

    /// Does what is to be done before the container is asked to stop, as far as the bound allows.
    pub(in crate::pod) async fn pre_stop(&self, bound: Duration) -> Result<(), Failure> {
        let hooks = container::named(&self.site.pod, &self.container).and_then(|one| one.lifecycle.as_ref());
        let Some(hook) = hooks.and_then(|hooks| hooks.pre_stop.as_ref()) else { return Ok(()) };
        let failed = |why: String| Failure::new("FailedPreStopHook", format!("PreStopHook failed: {why}"));
        let late = |_| failed(format!("it did not end within the grace, {} s", bound.as_secs()));
        timeout(bound, self.run(hook)).await.map_err(late)?.map_err(failed)
    }

    async fn run(&self, hook: &LifecycleHandler) -> Result<(), String> {
        let name = &self.container;
        if let Some(action) = &hook.exec {
            let sandbox = self.sandbox.as_ref().ok_or_else(|| format!("container {name} does not run"))?;
            let command = action.command.as_deref().unwrap_or_default();
            return match exec::run(sandbox, name, command).await? {
                (0, _) => Ok(()),
                (code, output) => {
                    let command = command.join(" ");
                    Err(format!("{command:?} in container {name} ended with exit code {code}: {output}"))
                }
            };
        }
        if let Some(action) = &hook.http_get {
            let container = container::named(&self.site.pod, name).ok_or_else(|| format!("no container {name}"))?;
            let ip = self.address.ok_or_else(|| "the pod has no address".to_owned())?;
            let address = SocketAddr::new(ip, port_of(container, &action.port)?);
            let late = |_| format!("{address} did not answer within {} s", HTTP_LIMIT.as_secs());
            // As under the kubelet, an answer is enough, whatever it says.
            return timeout(HTTP_LIMIT, http::follow(action, address)).await.map_err(late)?.map(drop);
        }
        if let Some(action) = &hook.sleep {
            sleep(Duration::from_secs(action.seconds.max(0).unsigned_abs())).await;
        }
        Ok(())
    }
}
