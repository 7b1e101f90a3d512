use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, StatusCode};

use crate::serve::{Application, text, typed};

/// Answers with its version, whatever is asked.
pub(crate) struct Hello {
    pub(crate) version: String,
}

impl Application for Hello {
    async fn answer(&self, _: Request<Bytes>, _: SocketAddr) -> Response<Bytes> {
        text(StatusCode::OK, format!("Hello server - {}\n", self.version))
    }
}

/// A web server's first page.
pub(crate) struct Welcome;

const PAGE: &str = "<!DOCTYPE html>
<html>
<head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p>A stand-in for the real one, run by the lab.</p></body>
</html>
";

impl Application for Welcome {
    async fn answer(&self, request: Request<Bytes>, _: SocketAddr) -> Response<Bytes> {
        match request.uri().path() {
            "/" | "/index.html" => typed(StatusCode::OK, "text/html", PAGE),
            _ => typed(
                StatusCode::NOT_FOUND,
                "text/html",
                "<h1>404 Not Found</h1>\n",
            ),
        }
    }
}
