//! What every request passes: who makes it, whether they may, a span, and the counters. Streams end with a
//! clear status when the server stops.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use hearth_types::{Clock, identity::Remote};
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntGauge;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::{
    authn::{self, Peer},
    io::ConnInfo,
    methods::{self, Method},
};
use crate::{devices::DeviceIndex, grpc::convert::to_grpc, metrics::Metrics};

struct Shared {
    clock: Arc<dyn Clock>,
    devices: Arc<DeviceIndex>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

/// Puts a [`Guard`] in front of the services.
#[derive(Clone)]
pub(crate) struct GuardLayer(Arc<Shared>);

impl GuardLayer {
    /// `stop` ends the streams.
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        devices: Arc<DeviceIndex>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared { clock, devices, metrics, stop }))
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;
    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, shared: self.0.clone() }
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Guard<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        let method = methods::of_path(request.uri().path());
        let info = request.extensions().get::<ConnInfo>().cloned();
        let nobody = Arc::new(Peer::Nobody);
        let (peer, remote) = info.map_or((nobody, None), |info| (info.peer, Some(info.remote)));
        let identity = authn::identify(&peer, &shared.devices, shared.clock.now());
        let span = tracing::info_span!(
            "request", service = method.service, method = method.name, caller = %identity,
            remote = remote.map(tracing::field::display),
        );
        let record = Record::begin(shared.metrics.clone(), method);
        if !method.permits(&identity) {
            let status = authn::refusal(&identity, &peer, &shared.devices, method);
            span.in_scope(|| tracing::debug!(%status, "refused"));
            let response = to_grpc(&status).into_http::<Body>();
            return Box::pin(std::future::ready(Ok(record.answered(response, &shared.stop))));
        }
        request.extensions_mut().insert(identity);
        if let Some(remote) = remote {
            request.extensions_mut().insert(Remote(remote.ip()));
        }
        // The clone that was polled ready is the one to call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let work = async move {
            let response = inner.call(request).await?;
            Ok(record.answered(response, &shared.stop))
        };
        Box::pin(work.instrument(span))
    }
}

/// One request under way; counted when it is dropped.
struct Record {
    metrics: Arc<Metrics>,
    method: &'static Method,
    open: IntGauge,
    begun: Instant,
    code: Code,
}

impl Record {
    fn begin(metrics: Arc<Metrics>, method: &'static Method) -> Self {
        let open = metrics.open.with_label_values(&[method.service, method.name]);
        open.inc();
        // Until something else is known: the client went away.
        Self { metrics, method, open, begun: Instant::now(), code: Code::Cancelled }
    }

    fn answered(mut self, response: Response<Body>, stop: &CancellationToken) -> Response<Body> {
        let labels = [self.method.service, self.method.name];
        self.metrics.latency.with_label_values(&labels).observe(self.begun.elapsed().as_secs_f64());
        self.see(response.headers());
        let stop = Box::pin(stop.clone().cancelled_owned());
        response.map(|inner| Body::new(Watched { inner, record: self, stop: Some(stop) }))
    }

    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = tonic::Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.open.dec();
        let code = format!("{:?}", self.code);
        self.metrics.requests.with_label_values(&[self.method.service, self.method.name, &code]).inc();
    }
}

/// The body of an answer: its trailers say how the request ended.
struct Watched {
    inner: Body,
    record: Record,
    /// `None` once the end was sent.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        let Some(stop) = this.stop.as_mut() else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.record.see(trailers);
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                if stop.as_mut().poll(cx).is_ready() {
                    this.stop = None;
                    return Poll::Ready(stopping(&mut this.record).map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.stop.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn stopping(record: &mut Record) -> Option<HeaderMap> {
    record.code = Code::Unavailable;
    let status = hearth_types::Status::unavailable("the region's server is stopping; connect again");
    let mut trailers = HeaderMap::new();
    to_grpc(&status).add_header(&mut trailers).ok()?;
    Some(trailers)
}
