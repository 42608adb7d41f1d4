//! The doors of the session table.

use std::{pin::Pin, sync::Arc};

use hearth_proto::v1::{DeviceMessage, RegionMessage, devices_server::Devices};
use hearth_types::{
    BoxFuture, DeviceKey, DeviceName,
    tunnel::{DialError, DialNotice, DialNotifier},
};
use tonic::{Request, Response, Status, Streaming};

use crate::hub::Hub;

/// The gRPC service `hearth.v1.Devices`.
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
    type SessionStream = Pin<Box<dyn futures_core::Stream<Item = Result<RegionMessage, Status>> + Send>>;

    async fn session(&self, _: Request<Streaming<DeviceMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unavailable(format!("region {} is starting", self.hub.config.region)))
    }
}

pub(crate) struct Dialling {
    _hub: Arc<Hub>,
}

impl Dialling {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { _hub: hub }
    }
}

impl DialNotifier for Dialling {
    fn ask_to_dial<'a>(&'a self, device: &'a DeviceName, _: DialNotice) -> BoxFuture<'a, Result<Vec<DeviceKey>, DialError>> {
        Box::pin(async move { Err(Hub::away(device)) })
    }
    fn device_of_key(&self, _: &DeviceKey) -> Option<DeviceName> {
        None
    }
}
