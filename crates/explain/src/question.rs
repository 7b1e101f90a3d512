//! What is asked, as a person would write it.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Who calls whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// `NAMESPACE/NAME` of a pod or Deployment; without a namespace that of `namespace`.
    pub source: String,
    /// Namespace of names that have none.
    pub namespace: String,
    /// `HOST[:PORT]`, `IP:PORT`, `pod/NAMESPACE/NAME:PORT` or `http://HOST[:PORT]/PATH`.
    pub destination: String,
    /// The request, if one is asked about.
    pub request: Option<Asked>,
}

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Method.
    pub method: Method,
    /// Path, with the query.
    pub path: String,
    /// Headers; a `host` replaces the destination's.
    pub headers: HeaderMap,
}

/// A question that has no answer, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// No pod or Deployment of that name.
    #[error("no pod or Deployment {0} is known; callers are named NAMESPACE/POD{1}")]
    NoCaller(String, String),
    /// It has no address yet.
    #[error("the pod {0} has no address: it does not run")]
    NoAddress(String),
    /// No service or pod of that name.
    #[error(
        "{0} names no Service, no pod and no address; try HOST:PORT, IP:PORT or pod/NAMESPACE/NAME:PORT{1}"
    )]
    NoDestination(String, String),
    /// Several ports and none named.
    #[error("{0} has several ports; name one of them: {1}")]
    WhichPort(String, String),
    /// It cannot be part of a request.
    #[error("{0:?} is no {1}")]
    Malformed(String, &'static str),
}

impl Question {
    /// A question about a connection to `destination`; a URL also asks for its path.
    ///
    /// # Errors
    /// When the URL's path cannot be asked for.
    pub fn new(namespace: &str, source: &str, destination: &str) -> Result<Self, QuestionError> {
        let mut question = Self {
            source: source.to_owned(),
            namespace: namespace.to_owned(),
            destination: destination.to_owned(),
            request: None,
        };
        if let Some(rest) = destination.strip_prefix("http://") {
            let (host, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, "/"),
            };
            question.destination = match host.rsplit_once(':') {
                Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
                _ => format!("{host}:80"),
            };
            question.request = Some(Asked::new("GET", path, &[])?);
        }
        Ok(question)
    }
}

impl Asked {
    /// A request; headers as `NAME: VALUE`.
    ///
    /// # Errors
    /// When a part is not what HTTP allows there.
    pub fn new(method: &str, path: &str, headers: &[String]) -> Result<Self, QuestionError> {
        let wrong = |text: &str, what| QuestionError::Malformed(text.to_owned(), what);
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| wrong(method, "method"))?;
        if !path.starts_with('/') {
            return Err(wrong(path, "path: it starts with a slash"));
        }
        let mut map = HeaderMap::new();
        for line in headers {
            let pair = line.split_once(':');
            let (name, value) = pair.ok_or_else(|| wrong(line, "header: write NAME: VALUE"))?;
            let name = HeaderName::from_bytes(name.trim().as_bytes());
            let value = HeaderValue::from_str(value.trim());
            map.append(
                name.map_err(|_| wrong(line, "header name"))?,
                value.map_err(|_| wrong(line, "header value"))?,
            );
        }
        Ok(Self {
            method,
            path: path.to_owned(),
            headers: map,
        })
    }
}
