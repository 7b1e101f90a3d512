//! A request as a waypoint sees it.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use isobar_route::path::Normalization;
use isobar_route::{HttpCall, fields, path};

use crate::destination::Destination;
use crate::question::{Asked, QuestionError};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ANY_ID: HeaderValue = HeaderValue::from_static("00000000-0000-4000-8000-000000000000");

/// A request's normalised head.
#[derive(Debug)]
pub(crate) struct Request {
    method: Method,
    path: String,
    query: Option<String>,
    authority: String,
    written_authority: String,
    scheme: &'static str,
    headers: HeaderMap,
    destination: SocketAddr,
}

impl Request {
    /// The request that was asked about, or a GET of `/`.
    pub(crate) fn new(
        asked: Option<&Asked>,
        to: &Destination,
        normal: Normalization,
    ) -> Result<Self, QuestionError> {
        let wrong = |text: &str, what| QuestionError::Malformed(text.to_owned(), what);
        let mut headers = asked.map(|asked| asked.headers.clone()).unwrap_or_default();
        let target = asked.map_or("/", |asked| &asked.path);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let normal = path::normalise(path, normal).map_err(|_| wrong(path, "path"))?;
        let host = headers.remove(header::HOST);
        let written = match &host {
            Some(host) => {
                let text = host.to_str().map_err(|_| wrong("host", "header value"))?;
                Cow::Borrowed(text)
            }
            None => Cow::Borrowed(&*to.authority),
        };
        let authority = path::normalise_authority(&written, "http");
        let scheme = fields::clean(&mut headers);
        // A waypoint gives one to every request that has none.
        headers.entry(REQUEST_ID).or_insert(ANY_ID);
        Ok(Self {
            method: asked.map_or(Method::GET, |asked| asked.method.clone()),
            path: normal.into_owned(),
            query,
            authority: authority.ok_or_else(|| wrong(&written, "host"))?,
            written_authority: path::without_trailing_dot(&written).into_owned(),
            scheme,
            headers,
            destination: to.address,
        })
    }

    pub(crate) fn call(&self) -> HttpCall<'_> {
        HttpCall {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            authority: &self.authority,
            written_authority: &self.written_authority,
            scheme: self.scheme,
            headers: &self.headers,
            destination: self.destination,
        }
    }
}
