//! Bookinfo: a page made of the answers of three services.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::call;
use crate::serve::{Application, json, text, typed};

/// Header fields an application passes on, so that traces and routes by user stay whole.
const PASSED_ON: [&str; 6] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "end-user",
    "user-agent",
];

fn passed_on(fields: &HeaderMap) -> HeaderMap {
    PASSED_ON
        .iter()
        .filter_map(|name| {
            Some((
                http::HeaderName::from_static(name),
                fields.get(*name)?.clone(),
            ))
        })
        .collect()
}

fn health() -> Response<Bytes> {
    json(&json!({ "status": "healthy" }))
}

fn not_found() -> Response<Bytes> {
    text(StatusCode::NOT_FOUND, "no such page\n")
}

/// The HTML page.
pub(crate) struct ProductPage {
    pub(crate) port: u16,
}

impl Application for ProductPage {
    async fn answer(&self, request: Request<Bytes>, _: SocketAddr) -> Response<Bytes> {
        match request.uri().path() {
            "/health" => health(),
            "/" | "/productpage" => self.page(request.headers()).await,
            _ => not_found(),
        }
    }
}

impl ProductPage {
    async fn page(&self, fields: &HeaderMap) -> Response<Bytes> {
        let mut fields = passed_on(fields);
        if let Some(user) = fields.get("end-user").cloned() {
            fields.insert("end-user", user);
        }
        let (details, reviews) = tokio::join!(
            self.ask("details", "/details/0", &fields),
            self.ask("reviews", "/reviews/0", &fields)
        );
        let page = format!(
            "<!DOCTYPE html>\n<html>\n<head><meta charset=\"utf-8\"><title>Simple Bookstore App</title>\n\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44em;margin:3em auto;color:#222}}\
             h2{{border-bottom:1px solid #ddd}}blockquote{{margin:1em 0;padding:.5em 1em;border-left:4px solid #ccc}}\
             small{{color:#777}}.red{{color:#c22}}.error{{color:#c22}}</style></head>\n\
             <body>\n<h1>The Comedy of Errors</h1>\n<h2>Book Details</h2>\n{}\n<h2>Book Reviews</h2>\n{}\n</body>\n</html>\n",
            details
                .as_ref()
                .map_or_else(|e| sorry("details", e), show_details),
            reviews
                .as_ref()
                .map_or_else(|e| sorry("reviews", e), show_reviews),
        );
        typed(StatusCode::OK, "text/html; charset=utf-8", page)
    }

    async fn ask(&self, service: &str, path: &str, fields: &HeaderMap) -> Result<Value, String> {
        ask(service, self.port, path, fields).await
    }
}

async fn ask(service: &str, port: u16, path: &str, fields: &HeaderMap) -> Result<Value, String> {
    let url: http::Uri = format!("http://{service}:{port}{path}")
        .parse()
        .map_err(|e| format!("{e}"))?;
    let reply = call::get(&url, fields)
        .await
        .map_err(|e| format!("{e:#}"))?;
    if reply.status() != StatusCode::OK {
        return Err(format!("{} answered {}", service, reply.status()));
    }
    serde_json::from_slice(reply.body()).map_err(|e| format!("{service}: {e}"))
}

fn sorry(what: &str, why: &str) -> String {
    format!(
        "<p class=\"error\">Sorry, product {what} are currently unavailable: {}</p>",
        escape(why)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn show_details(details: &Value) -> String {
    let rows: Vec<_> = details
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            format!(
                "<tr><td><b>{}</b></td><td>{}</td></tr>",
                escape(name),
                escape(&value)
            )
        })
        .collect();
    format!("<table>{}</table>", rows.concat())
}

fn show_reviews(answer: &Value) -> String {
    let version = answer["podname"].as_str().unwrap_or_default();
    let quotes: Vec<_> = answer["reviews"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|review| {
            let rating = &review["rating"];
            let stars = rating["stars"].as_u64().map_or_else(String::new, |stars| {
                let color = rating["color"].as_str().unwrap_or_default();
                let filled = usize::try_from(stars).unwrap_or(5).min(5);
                format!(
                    "<br><span class=\"{}\">{}{}</span>",
                    escape(color),
                    "★".repeat(filled),
                    "☆".repeat(5 - filled)
                )
            });
            format!(
                "<blockquote>{}<br><small>{}</small>{stars}</blockquote>",
                escape(review["text"].as_str().unwrap_or_default()),
                escape(review["reviewer"].as_str().unwrap_or_default()),
            )
        })
        .collect();
    format!(
        "{}<p><small>Reviews served by {}</small></p>",
        quotes.concat(),
        escape(version)
    )
}

/// Facts about the book.
pub(crate) struct Details;

impl Application for Details {
    async fn answer(&self, request: Request<Bytes>, _: SocketAddr) -> Response<Bytes> {
        match request.uri().path() {
            "/health" => health(),
            path if path.starts_with("/details") => json(&json!({
                "id": 0,
                "author": "William Shakespeare",
                "year": 1595,
                "type": "paperback",
                "pages": 200,
                "publisher": "PublisherA",
                "language": "English",
            })),
            _ => not_found(),
        }
    }
}

/// Reviews of the book.
pub(crate) struct Reviews {
    pub(crate) version: String,
    pub(crate) port: u16,
}

impl Application for Reviews {
    async fn answer(&self, request: Request<Bytes>, _: SocketAddr) -> Response<Bytes> {
        match request.uri().path() {
            "/health" => health(),
            path if path.starts_with("/reviews") => self.reviews(request.headers()).await,
            _ => not_found(),
        }
    }
}

impl Reviews {
    async fn reviews(&self, fields: &HeaderMap) -> Response<Bytes> {
        let color = match &*self.version {
            "v1" => None,
            "v2" => Some("black"),
            _ => Some("red"),
        };
        let ratings = match color {
            None => None,
            Some(_) => Some(ask("ratings", self.port, "/ratings/0", &passed_on(fields)).await),
        };
        let rating = |reviewer: &str| match &ratings {
            None => Value::Null,
            Some(Ok(answer)) => json!({ "stars": answer["ratings"][reviewer], "color": color }),
            Some(Err(why)) => json!({ "error": why }),
        };
        json(&json!({
            "id": "0",
            "podname": format!("reviews-{}", self.version),
            "reviews": [
                {
                    "reviewer": "Reviewer1",
                    "text": "A plot of twins and mistakes that never loses its speed.",
                    "rating": rating("Reviewer1"),
                },
                {
                    "reviewer": "Reviewer2",
                    "text": "Light, loud and over too soon.",
                    "rating": rating("Reviewer2"),
                },
            ],
        }))
    }
}

/// Stars.
pub(crate) struct Ratings;

impl Application for Ratings {
    async fn answer(&self, request: Request<Bytes>, _: SocketAddr) -> Response<Bytes> {
        match request.uri().path() {
            "/health" => health(),
            path if path.starts_with("/ratings") => {
                json(&json!({ "id": 0, "ratings": { "Reviewer1": 5, "Reviewer2": 4 } }))
            }
            _ => not_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_services_say_is_escaped() {
        let page = show_reviews(&json!({"podname": "<p>", "reviews": [
            {"text": "<script>", "reviewer": "a&b", "rating": {"stars": 9, "color": "red"}}]}));
        assert!(!page.contains("<script>") && page.contains("a&amp;b") && page.contains("★★★★★"));
    }
}
