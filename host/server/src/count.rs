//! Counts a request from its head to the last byte of its answer, streams included.

use crate::app::App;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use backplane::metrics::{InFlight, Metrics};
use bytes::Bytes;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

/// What a request counts as whose client left before there was an answer. It is nginx's.
const CLIENT_LEFT: u16 = 499;

/// Counts when it is dropped.
pub(crate) struct Counted {
    metrics: Metrics,
    method: Method,
    route: &'static str,
    status: u16,
    started: Instant,
    _open: InFlight,
}

impl Counted {
    /// A request to a route, by the route's pattern.
    pub(crate) fn new(http: &HttpRequest, route: &'static str, started: Instant) -> Option<Self> {
        let metrics = http.app_data::<web::Data<App>>()?.host.metrics().clone();
        let open = metrics.http_began();
        Some(Self {
            metrics,
            method: http.method().clone(),
            route,
            status: CLIENT_LEFT,
            started,
            _open: open,
        })
    }
}

/// The answer, and what counts it when its last byte is out.
pub(crate) fn to_the_end(counted: Option<Counted>, response: HttpResponse) -> HttpResponse {
    let Some(mut counted) = counted else { return response };
    counted.status = response.status().as_u16();
    response.map_body(|_, body| BoxBody::new(Body { body, _counted: counted }))
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.http_ended(self.method.as_str(), self.route, self.status, self.started.elapsed());
    }
}

struct Body {
    body: BoxBody,
    _counted: Counted,
}

impl MessageBody for Body {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}
