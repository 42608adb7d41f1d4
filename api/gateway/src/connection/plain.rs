//! A plain HTTP request: sent to https.

use tokio::net::TcpStream;

use super::{Shared, refuse};
use crate::http;

/// Answers a request, and says what became of it.
pub(super) async fn serve<D>(shared: &Shared<D>, socket: TcpStream, head: Option<http::Request>) -> &'static str {
    let Some(request) = head else {
        refuse(socket, &http::bad_request()).await;
        return "malformed";
    };
    if shared.routes.lookup(&request.host).is_none() {
        refuse(socket, &http::not_found(&request)).await;
        return "unknown_name";
    }
    refuse(socket, &http::redirect(&request, shared.https_port)).await;
    "redirected"
}
