//! `lifecycle`: what is to be done when a container has started, and before it is asked to stop.

use std::time::Duration;

use hearth_pod::Failure;
use hearth_types::kinds::{Lifecycle, LifecycleHandler};
use tokio::time::{sleep, timeout};

use super::{Subject, exec, http};

/// How long a request may take. A command may take as long as it likes: it ends with its container.
const HTTP_LIMIT: Duration = Duration::from_mins(5);

impl Subject {
    /// Does what is to be done when the container has started.
    pub(in crate::pod) async fn post_start(&self) -> Result<(), Failure> {
        let Some(hook) = self.hook(|hooks| hooks.post_start.as_ref()) else { return Ok(()) };
        let failed = |why: String| Failure::new("FailedPostStartHook", format!("PostStartHook failed: {why}"));
        self.run(hook).await.map_err(failed)
    }

    /// Does what is to be done before the container is asked to stop, as far as the bound allows.
    pub(in crate::pod) async fn pre_stop(&self, bound: Duration) -> Result<(), Failure> {
        let Some(hook) = self.hook(|hooks| hooks.pre_stop.as_ref()) else { return Ok(()) };
        let failed = |why: String| Failure::new("FailedPreStopHook", format!("PreStopHook failed: {why}"));
        let late = |_| failed(format!("it did not end within the grace, {} s", bound.as_secs()));
        timeout(bound, self.run(hook)).await.map_err(late)?.map_err(failed)
    }

    fn hook(&self, which: fn(&Lifecycle) -> Option<&LifecycleHandler>) -> Option<&LifecycleHandler> {
        self.spec().ok()?.lifecycle.as_ref().and_then(which)
    }

    async fn run(&self, hook: &LifecycleHandler) -> Result<(), String> {
        if let Some(action) = &hook.exec {
            let (name, command) = (&self.container, action.command.as_deref().unwrap_or_default());
            return match exec::run(self.running()?, name, command).await? {
                (0, _) => Ok(()),
                (code, output) => {
                    let command = command.join(" ");
                    Err(format!("{command:?} in container {name} ended with exit code {code}: {output}"))
                }
            };
        }
        if let Some(action) = &hook.http_get {
            let address = self.reached_at(&action.port)?;
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
