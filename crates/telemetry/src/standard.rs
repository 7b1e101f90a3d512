//! Routes that every product has, with Istio's paths and bodies.

use http::StatusCode;
use http::header::ACCEPT;

use crate::http_server::{Call, Reply, Routes};
use crate::logging::LogControl;
use crate::metrics::{OPENMETRICS, Registry};
use crate::ready::Ready;

const LOGGING_USAGE: &str = "\
usage: POST /logging\t\t\t\t\t\t(To list current level)
usage: POST /logging?level=<level>\t\t\t\t(To change global levels)
usage: POST /logging?level={target}={level},{target}={level}\t(To change specific targets)
usage: POST /logging?reset\t\t\t\t\t(To go back to the level of the start)

level: error, warn, info, debug, trace, off
";

/// `GET /healthz/ready`: 200 `ready`, or 500 with the names of the closed gates.
#[must_use]
pub fn readiness(ready: Ready) -> Routes {
    Routes::new().get("/healthz/ready", move |_| {
        let pending = ready.pending();
        async move {
            if pending.is_empty() {
                return Reply::text(StatusCode::OK, "ready\n");
            }
            let text = format!("not ready, pending: {}\n", pending.join(", "));
            Reply::text(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    })
}

/// `GET /metrics` and `/stats/prometheus`: OpenMetrics text.
#[must_use]
pub fn metrics(registry: &Registry) -> Routes {
    let mut routes = Routes::new();
    for path in ["/metrics", "/stats/prometheus"] {
        let registry = registry.clone();
        routes = routes.get(path, move |call: Call| {
            let registry = registry.clone();
            async move {
                // Thousands of series take a while, in which this thread would do nothing else.
                let encoded = tokio::task::spawn_blocking(move || registry.encode()).await;
                let body = match encoded {
                    Ok(body) => body,
                    Err(error) => {
                        return Reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
                    }
                };
                let openmetrics = call
                    .headers
                    .get_all(ACCEPT)
                    .iter()
                    .filter_map(|v| v.to_str().ok())
                    .any(|v| v.contains("application/openmetrics-text"));
                let mut reply = Reply::text(StatusCode::OK, body);
                if openmetrics {
                    reply.content_type = OPENMETRICS;
                }
                reply
            }
        });
    }
    routes
}

/// Adds `POST /logging` (query `level=…`, `reset`) to `routes`.
#[must_use]
pub fn logging(routes: Routes, control: LogControl) -> Routes {
    routes.any("/logging", move |call: Call| {
        let reply = change_level(&call, &control);
        async move { reply }
    })
}

/// The same where others than the machine's own reach the port: only those change the level.
#[must_use]
pub fn local_logging(routes: Routes, control: LogControl) -> Routes {
    routes.any("/logging", move |call: Call| {
        let reply = match is_from_elsewhere(&call) {
            false => change_level(&call, &control),
            true => {
                let text = "only from this machine: forward the port\n";
                Reply::text(StatusCode::FORBIDDEN, text)
            }
        };
        async move { reply }
    })
}

fn is_from_elsewhere(call: &Call) -> bool {
    !call.peer.ip().to_canonical().is_loopback()
}

fn change_level(call: &Call, control: &LogControl) -> Reply {
    if call.is_from_a_page() {
        return foreign();
    }
    if call.method != http::Method::POST {
        let text = format!("Invalid HTTP method\n{LOGGING_USAGE}");
        return Reply::text(StatusCode::METHOD_NOT_ALLOWED, text);
    }
    let reset = call.query_value("reset").is_some();
    let level = call.query_value("level").filter(|l| !l.is_empty());
    if (reset || level.is_some())
        && let Err(error) = control.change(level.as_deref(), reset)
    {
        let text = format!("{error}\n{LOGGING_USAGE}");
        return Reply::text(StatusCode::BAD_REQUEST, text);
    }
    let mut text = format!("current log level is {}\n", control.current());
    if let Some(unheard) = control.unheard() {
        text.push_str(&unheard);
        text.push('\n');
    }
    Reply::text(StatusCode::OK, text)
}

/// Adds `POST /quitquitquit`, which calls `quit`, to `routes`.
#[must_use]
pub fn quit(routes: Routes, quit: impl Fn() + Send + Sync + 'static) -> Routes {
    routes.post("/quitquitquit", move |call: Call| {
        let reply = if call.is_from_a_page() {
            foreign()
        } else {
            quit();
            Reply::text(StatusCode::OK, "shutdown now\n")
        };
        async { reply }
    })
}

/// The answer to a page in a browser that wants to change something here.
fn foreign() -> Reply {
    let text = "not from a web page\n";
    Reply::text(StatusCode::FORBIDDEN, text)
}

/// Adds an index page at `/` that lists the paths served.
#[must_use]
pub fn index(routes: Routes, title: &'static str) -> Routes {
    let items: String = routes
        .paths()
        .iter()
        .map(|path| format!("<li><a href=\"{path}\">{path}</a></li>"))
        .collect();
    let page = format!(
        "<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1><ul>{items}</ul>\n"
    );
    routes.any("/", move |_| {
        let page = page.clone();
        async move {
            Reply {
                status: StatusCode::OK,
                content_type: "text/html; charset=utf-8",
                body: page.into(),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reaches_the_port_over_the_network_is_from_elsewhere() {
        for (peer, expected) in [
            ("127.0.0.1:1", false),
            ("127.0.0.9:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("10.244.1.7:1", true),
            ("[fd00::7]:1", true),
        ] {
            let call = Call {
                method: http::Method::POST,
                path: "/logging".to_owned(),
                query: "level=off".to_owned(),
                headers: http::HeaderMap::new(),
                peer: peer.parse().unwrap(),
            };
            assert_eq!(is_from_elsewhere(&call), expected, "{peer}");
        }
    }
}
