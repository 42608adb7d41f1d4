//! The gRPC door of the sessions.

use std::sync::Arc;

use hearth_proto::v1::{DeviceMessage, RegionMessage, devices_server::Devices, region_message::Message};
use hearth_types::identity::{Identity, Remote};
use tonic::{Request, Response, Status, Streaming};

use super::{Caller, outbox, run};
use crate::hub::Hub;

/// The gRPC service `hearth.v1.Devices`. The door must put the caller's [`Identity`] into the request's extensions, and may put its [`Remote`].
pub struct DevicesService {
    hub: Arc<Hub>,
}

impl DevicesService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

#[tonic::async_trait]
impl Devices for DevicesService {
    type SessionStream = outbox::Outgoing;

    async fn session(
        &self,
        request: Request<Streaming<DeviceMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let identity = request.extensions().get::<Identity>().cloned();
        let Some(Identity::Device { name, owner: _, key }) = identity else {
            let who = identity.map_or_else(|| "a caller without identity".to_owned(), |identity| identity.to_string());
            let text =
                format!("a session is for devices that proved their key; this is {who}; join first with `hearth join`");
            return Err(Status::permission_denied(text));
        };
        if !self.hub.is_ready() {
            return Err(Status::unavailable(format!("region {} is starting; try again", self.hub.config.region)));
        }
        let from = request.extensions().get::<Remote>().map(|remote| remote.0.to_canonical());
        let (outbox, stream) = outbox::new();
        if let Some(lead) = self.hub.lead() {
            // Ends with the stream, the session's end, the time of leading or the hub's shutdown; a panic ends the stream alone.
            tokio::spawn(run::session(
                Arc::clone(&self.hub),
                Caller { device: name, key, from },
                request.into_inner(),
                outbox,
                lead,
            ));
        } else {
            let goodbye = self
                .hub
                .goodbye("this server does not lead the region; devices have their sessions with the one that does");
            outbox.close(Some(Ok(RegionMessage { message: Some(Message::Goodbye(goodbye)) })));
        }
        Ok(Response::new(stream))
    }
}
