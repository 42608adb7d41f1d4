//! What an admin asks of a region about its recovery.

use hearth_proto::v1::{self, recovery_client::RecoveryClient};
use hearth_types::Status;
use tonic::transport::Channel;

use crate::{Client, client::timed, convert};

impl Client {
    fn recovery(&self) -> RecoveryClient<Channel> {
        RecoveryClient::new(self.channel())
    }

    /// What a recovery key has to be told of the region, and whether it takes what devices hand in.
    pub async fn describe_recovery(&self) -> Result<v1::DescribeRecoveryResponse, Status> {
        let answer = self.recovery().describe(timed(v1::DescribeRecoveryRequest {})).await;
        Ok(answer.map_err(|error| convert::status(&error))?.into_inner())
    }

    /// Sets the region's recovery key, or another one that the one before has signed.
    pub async fn set_recovery_key(&self, trust_json: Vec<u8>) -> Result<(), Status> {
        let answer = self.recovery().set_key(timed(v1::SetKeyRequest { trust_json: trust_json.into() })).await;
        answer.map(drop).map_err(|error| convert::status(&error))
    }

    /// Ends the time in which devices may hand in what they have.
    pub async fn finish_recovery(&self) -> Result<(), Status> {
        let answer = self.recovery().finish(timed(v1::FinishRequest {})).await;
        answer.map(drop).map_err(|error| convert::status(&error))
    }
}
